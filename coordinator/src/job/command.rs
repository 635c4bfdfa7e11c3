//! What a transition wants done, all of it by workers.

use crate::rendezvous::Place;
use common::{
    cause::Stuck,
    ids::{Generation, JobId, Step},
    manifest::Manifest,
    plan::TrainPlan,
};
use std::{path::PathBuf, time::Duration};

/// Names one trainer process: one try of one job on one place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TrainerKey {
    /// The job.
    pub job: JobId,
    /// The membership.
    pub generation: Generation,
    /// Where it runs.
    pub place: Place,
}

/// An order to a worker. Each may be sent more than once.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Start a trainer, or have the living one wait for the plan of this generation.
    StartTrainer {
        /// Which.
        trainer: TrainerKey,
        /// The job's folder.
        output: PathBuf,
    },
    /// Hand it its plan.
    SendPlan {
        /// To whom.
        trainer: TrainerKey,
        /// What to do.
        plan: Box<TrainPlan>,
    },
    /// Write a checkpoint, then finish the stage as stopped.
    StopTrainer {
        /// Which.
        trainer: TrainerKey,
    },
    /// End the process.
    EndTrainer {
        /// Which.
        trainer: TrainerKey,
        /// How long it may take before it is killed.
        grace: Duration,
    },
    /// Keep what the threads of a stuck one do, then kill it; it counts as lost for this.
    EndStuck {
        /// Which.
        trainer: TrainerKey,
        /// How it is stuck.
        stuck: Box<Stuck>,
    },
    /// Create `manifest.json`.
    CommitManifest {
        /// Who.
        trainer: TrainerKey,
        /// The checkpoint's step.
        step: Step,
        /// What to write.
        manifest: Box<Manifest>,
    },
}

impl Command {
    /// Whom it is for.
    pub fn trainer(&self) -> &TrainerKey {
        match self {
            Command::StartTrainer { trainer, .. }
            | Command::SendPlan { trainer, .. }
            | Command::StopTrainer { trainer }
            | Command::EndTrainer { trainer, .. }
            | Command::EndStuck { trainer, .. }
            | Command::CommitManifest { trainer, .. } => trainer,
        }
    }
}
