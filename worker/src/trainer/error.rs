//! Why a stage ended early.

use crate::{
    checkpoint::CheckpointError, collective::CollectiveError, data::DataError, export::ExportError, model::ModelError,
    storage::StorageError, vectors::VectorsError,
};
use common::{cause::Diverged, status::FailureCause};
use std::path::PathBuf;

fn passed(before: u64) -> String {
    match before {
        0 => "and `skip_nonfinite` lets none pass".to_owned(),
        before => format!("as in {before} steps before it, and `skip_nonfinite` lets no more pass"),
    }
}

/// Why a trainer cannot go on. The message is what the user reads in `why`.
#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    /// Data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Texts, and their tokens.
    #[error(transparent)]
    Blocks(#[from] crate::text::BlocksError),
    /// Models, weights, tokenizer.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The embedding store.
    #[error(transparent)]
    Vectors(#[from] VectorsError),
    /// Files and objects.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Peers.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// Checkpoints.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The exported folder.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// libtorch.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// A file of the trainer's own.
    #[error("could not {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The agent's socket.
    #[error("lost the agent: {0}")]
    Link(#[from] crate::trainer::link::LinkError),
    /// The plan cannot be carried out as it is.
    #[error("{0}")]
    Plan(String),
    /// The loss or its gradients are no numbers any more.
    #[error(
        "step {step} is not finite (loss {loss}, gradient norm {grad_norm}), {}: the training has diverged. The newest \
         checkpoint is from before; lower `learning_rate`, set `clip_norm`, or lengthen `warmup_steps`, then `resume`; \
         of a single bad batch `skip_nonfinite` leaves out the update",
        passed(*skipped)
    )]
    Diverged {
        /// Which step.
        step: u64,
        /// Mean over the global batch.
        loss: f64,
        /// Of the gradients, before clipping.
        grad_norm: f64,
        /// How many steps just before it were left out for the same.
        skipped: u64,
    },
    /// What this rank trains is not what the others do, or no majority says what it should be.
    #[error(transparent)]
    Replica(Box<Unlike>),
    /// What another rank trains is not what this one and most others do.
    #[error(transparent)]
    PeerReplica(Box<Unlike>),
    /// The device held an update back although no collective says why.
    #[error(
        "step {step} was not carried out: a collective operation on the GPU was lost. `resume` goes on from the newest checkpoint"
    )]
    NotUpdated {
        /// Which step.
        step: u64,
    },
    /// A plan of a later membership is there.
    #[error("a later membership takes the place of this one")]
    Superseded,
    /// The coordinator did not commit a checkpoint that all ranks have written.
    #[error("the checkpoint of step {step} was not committed within {seconds} s: is the coordinator reachable?")]
    NotCommitted {
        /// Which step.
        step: u64,
        /// How long was waited.
        seconds: u64,
    },
}

impl TrainerError {
    /// Whether another rank is to blame, so that this one can go on with the others.
    pub fn is_of_peers(&self) -> bool {
        match self {
            Self::Collective(error) => error.is_of_peers(),
            Self::NotUpdated { .. } | Self::Superseded | Self::PeerReplica(_) => true,
            _ => false,
        }
    }

    /// The cause as a type, where there is one.
    pub fn cause(&self) -> Option<FailureCause> {
        match self {
            Self::Replica(unlike) | Self::PeerReplica(unlike) => Some(FailureCause::Diverged(unlike.0.clone())),
            _ => None,
        }
    }
}

/// Replicas that are not the same.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unlike(pub Diverged);
