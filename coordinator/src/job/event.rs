//! Everything that can happen to a job after its submission.

use crate::rendezvous::Place;
use common::{
    alarm::StorageTrouble,
    ids::{Generation, Rank, Slot, Step, WorkerId, WorldSize},
    manifest::Share,
    pulse::Pulse,
    status::{FailureCause, Progress},
};
use std::{collections::BTreeMap, path::PathBuf};

/// One thing that happened. `generation` and `place` name the trainer that reports; reports of another generation than
/// the newest are refused.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Time passed.
    Tick,
    /// These places are free for this job. Only one that waits for places takes them, or one that may grow.
    Capacity {
        /// All of them.
        free: Vec<Place>,
    },
    /// A trainer listens for its peers.
    TrainerReady {
        /// Its membership.
        generation: Generation,
        /// Where it runs.
        place: Place,
        /// Its process.
        pid: u32,
        /// Where its peers reach it.
        peer: String,
    },
    /// How far a rank is.
    Progress {
        /// Where it runs; the report itself names the membership.
        place: Place,
        /// The report.
        progress: Box<Progress>,
    },
    /// A rank lost its peers and waits for the next membership.
    PeersLost {
        /// Its membership.
        generation: Generation,
        /// Who.
        rank: Rank,
        /// The step that it holds in memory; absent when it holds none.
        step: Option<Step>,
        /// Which peer, in which operation.
        message: String,
    },
    /// A rank has got no further for a while, or goes on after that.
    Pulse {
        /// Where it runs.
        place: Place,
        /// Where it stands.
        pulse: Box<Pulse>,
    },
    /// A rank's share of a checkpoint is on storage.
    CheckpointWritten {
        /// Its membership.
        generation: Generation,
        /// The writer.
        rank: Rank,
        /// The checkpoint's step.
        step: Step,
        /// What it wrote.
        share: Box<Share>,
    },
    /// A rank has no checkpoint of a step, and goes on.
    StorageTrouble {
        /// Its membership.
        generation: Generation,
        /// Who, which step, which file, what.
        trouble: Box<StorageTrouble>,
    },
    /// `manifest.json` was created.
    CheckpointCommitted {
        /// The membership.
        generation: Generation,
        /// The checkpoint's step.
        step: Step,
    },
    /// A valid manifest was found on storage, of a commit that was ordered and never confirmed.
    CheckpointFound {
        /// The checkpoint's step.
        step: Step,
    },
    /// A rank finished its stage and waits for the next plan.
    StageFinished {
        /// Its membership.
        generation: Generation,
        /// Who.
        rank: Rank,
        /// What there is to say; absent from ranks that have nothing to.
        summary: Option<serde_json::Value>,
        /// Whether it ended because of a stop.
        stopped: bool,
    },
    /// A trainer's process ended.
    TrainerEnded {
        /// Its membership.
        generation: Generation,
        /// Where it ran.
        place: Place,
        /// Its process; absent when it never started.
        pid: Option<u32>,
        /// Why; absent when it ended by itself with exit code 0.
        cause: Option<FailureCause>,
        /// The end of its log, oldest line first.
        last_lines: Vec<String>,
        /// The log file.
        log: Option<PathBuf>,
    },
    /// A worker opened a session: these trainers of the job live on it, and no others.
    WorkerRegistered {
        /// Which worker.
        worker: WorkerId,
        /// The job's trainers there.
        living: Vec<LivingTrainer>,
    },
    /// A worker's lease lapsed.
    WorkerLost {
        /// Which.
        worker: WorkerId,
    },
    /// A worker is to be left, while its trainers still live.
    WorkerLeaves {
        /// Which.
        worker: WorkerId,
        /// Why.
        why: super::Leaves,
    },
    /// A user wants the job to end with a checkpoint.
    Stop,
    /// A user wants it to go on.
    Resume(Resume),
    /// All trainers of the job are known to be dead, and no worker will say so.
    Abandoned,
}

/// How to go on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resume {
    /// The checkpoint to go on from; absent means the newest.
    pub step: Option<Step>,
    /// With how many ranks; absent means as before.
    pub world_size: Option<WorldSize>,
    /// Weights of the data sets that the stage at hand, or the next one that trains, mixes from here on; empty means as before.
    pub weights: BTreeMap<String, u32>,
}

/// A trainer that lives through from before its worker's session began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LivingTrainer {
    /// The newest membership it was told of.
    pub generation: Generation,
    /// Its place on the worker.
    pub slot: Slot,
    /// Its process.
    pub pid: u32,
    /// Where its peers reach it.
    pub peer: String,
}
