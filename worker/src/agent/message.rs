//! What the coordinator orders and what the worker reports, in the terms of crate `common`.

use super::identity::Identity;
use common::{
    alarm::StorageTrouble,
    cause::Stuck,
    ids::{Generation, JobId, Rank, Slot, Step},
    manifest::{Manifest, Share},
    plan::TrainPlan,
    pulse::Pulse,
    status::{FailureCause, Inventory, Progress},
};
use std::{path::PathBuf, time::Duration};

/// Names one trainer: a place on this worker in one membership of one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainerRef {
    pub job: JobId,
    pub generation: Generation,
    pub slot: Slot,
}

/// What the coordinator orders.
#[derive(Debug, Clone, PartialEq)]
pub enum WorkerOrder {
    /// Start a trainer, or give one of the same job to a later membership.
    Start { trainer: TrainerRef, output: PathBuf },
    /// Hand out a plan.
    Plan { trainer: TrainerRef, plan: Box<TrainPlan> },
    /// Write a checkpoint, then finish the stage as stopped.
    Stop { trainer: TrainerRef },
    /// End the process.
    End { trainer: TrainerRef, grace: Duration },
    /// Keep what its threads do, then kill it; it counts as lost for this.
    EndStuck { trainer: TrainerRef, stuck: Box<Stuck> },
    /// Create a manifest.
    Commit { trainer: TrainerRef, step: Step, manifest: Box<Manifest> },
    /// Something for this trainer that cannot be read; it would be waited for in vain.
    Unreadable { trainer: TrainerRef, message: String },
}

/// What the worker reports.
#[derive(Debug, Clone, PartialEq)]
pub enum WorkerReport {
    /// A trainer waits for a plan or works on one.
    Ready(Ready),
    /// How far it is.
    Progress { trainer: TrainerRef, progress: Box<Progress> },
    /// It has got no further for a while, or goes on after that.
    Pulse { trainer: TrainerRef, pulse: Box<Pulse> },
    /// A share of a checkpoint is on storage.
    CheckpointWritten { trainer: TrainerRef, rank: Rank, step: Step, share: Box<Share> },
    /// A checkpoint is not there, or not whole any more.
    StorageTrouble { trainer: TrainerRef, trouble: Box<StorageTrouble> },
    /// A manifest exists.
    CheckpointCommitted { trainer: TrainerRef, step: Step },
    /// A stage is done.
    StageFinished { trainer: TrainerRef, rank: Rank, summary: Option<serde_json::Value>, stopped: bool },
    /// A rank lost its peers and waits for the next membership.
    PeersLost { trainer: TrainerRef, rank: Rank, step: Option<Step>, message: String },
    /// A trainer is gone.
    Ended(Ended),
}

/// A trainer that can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    pub trainer: TrainerRef,
    pub pid: u32,
    pub peer: String,
}

/// A trainer that is gone, or never was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub trainer: TrainerRef,
    /// Absent when it ended well.
    pub cause: Option<FailureCause>,
    /// Absent when it never started.
    pub pid: Option<u32>,
    pub last_lines: Vec<String>,
    /// Absent when it never started.
    pub log: Option<PathBuf>,
}

/// What goes over a session.
#[derive(Debug, Clone, PartialEq)]
pub enum WorkerMessage {
    /// Who this is, and the trainers that live; the first.
    Register { identity: Identity, inventory: Inventory, trainers: Vec<Ready> },
    /// The worker lives.
    Heartbeat,
    /// Its machine is being taken away.
    Leaving,
    /// What happened.
    Report(WorkerReport),
}
