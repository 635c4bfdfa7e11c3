//! The frames between an agent and its trainer, over one Unix socket a trainer.
//!
//! A frame is a little-endian `u32` length and that many bytes of JSON. The trainer connects, says `Hello` (again to a
//! new agent after the old one is gone), and reports; the agent orders.

use common::{
    alarm::StorageTrouble,
    ids::{Generation, Rank, Step},
    manifest::{Manifest, Share},
    plan::TrainPlan,
    status::{FailureCause, Progress},
};
use serde::{Deserialize, Serialize};

/// The largest frame that is read, in bytes.
pub const MAX_FRAME_BYTES: u32 = 64 << 20;

/// From the agent to its trainer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum Order {
    /// Run this.
    Plan(Box<TrainPlan>),
    /// Write a checkpoint after the step that runs and finish the stage as stopped.
    Stop,
    /// Every rank's share of the step's checkpoint is on storage: create this manifest.
    CommitManifest {
        /// The checkpoint's step.
        step: Step,
        /// What to write.
        manifest: Box<Manifest>,
    },
}

/// From a trainer to its agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case")]
pub enum Report {
    /// The first frame on every connection.
    Hello {
        /// The trainer's process.
        pid: u32,
        /// Where its peers reach it.
        peer: String,
        /// The generation it works on; absent while it waits for its first plan.
        generation: Option<Generation>,
    },
    /// How far it is.
    Progress(Box<Progress>),
    /// This rank's share of a checkpoint is on storage.
    CheckpointWritten {
        /// The membership.
        generation: Generation,
        /// The writer.
        rank: Rank,
        /// The checkpoint's step.
        step: Step,
        /// File, digest, tensors, and where the data stands.
        share: Box<Share>,
    },
    /// A checkpoint is not there, or not whole any more. The training goes on.
    StorageTrouble {
        /// The membership.
        generation: Generation,
        /// Who, which checkpoint, which file, what.
        trouble: Box<StorageTrouble>,
    },
    /// `manifest.json` exists.
    CheckpointCommitted {
        /// The membership.
        generation: Generation,
        /// The checkpoint's step.
        step: Step,
    },
    /// The stage is done; the trainer waits for the next plan.
    StageFinished {
        /// The membership.
        generation: Generation,
        /// Who finished.
        rank: Rank,
        /// What there is to say; absent from ranks that have nothing to.
        summary: Option<serde_json::Value>,
        /// Whether it ended because of a stop.
        stopped: bool,
    },
    /// Its membership is broken: a peer is gone, late or gave up. It waits for the plan of the next one.
    PeersLost {
        /// The membership.
        generation: Generation,
        /// Who says so.
        rank: Rank,
        /// The step that it holds in memory; absent when it holds none.
        step: Option<Step>,
        /// Which peer, in which operation.
        message: String,
    },
    /// It cannot go on and is about to end.
    Failed {
        /// The membership; absent before the first plan.
        generation: Option<Generation>,
        /// What, where, what to do.
        message: String,
        /// The same as a typed cause, where there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<FailureCause>,
    },
}
