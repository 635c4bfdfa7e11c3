//! Where a trainer stands, as its machine sees it from outside: what the trainer wrote down last, and what the kernel says of
//! its process. It is there when the trainer itself can say nothing any more.

use crate::ids::{Generation, Step};
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// What a trainer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doing {
    /// It waits for a plan: nobody waits for it.
    #[default]
    Idle,
    /// It joins its peers, opens data, builds models, loads a checkpoint; or it runs a stage that trains nothing.
    Preparing,
    /// It waits for its loader's next batch.
    LoadingBatch,
    /// It computes a step.
    Computing,
    /// It evaluates the weights between two steps.
    Evaluating,
    /// It copies a checkpoint to memory, or waits for the one before to be on storage.
    SavingCheckpoint,
    /// It waits until its last checkpoint is committed.
    Committing,
}

impl Doing {
    /// All; the place is the number in the trainer's record.
    pub const ALL: [Self; 7] = [
        Self::Idle,
        Self::Preparing,
        Self::LoadingBatch,
        Self::Computing,
        Self::Evaluating,
        Self::SavingCheckpoint,
        Self::Committing,
    ];

    /// Whether it is a part of every step, so that the length of steps says how long it may take.
    pub fn is_of_steps(self) -> bool {
        matches!(self, Self::LoadingBatch | Self::Computing)
    }
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "waiting for a plan",
            Self::Preparing => "preparing its stage",
            Self::LoadingBatch => "waiting for its loader",
            Self::Computing => "computing",
            Self::Evaluating => "evaluating",
            Self::SavingCheckpoint => "saving a checkpoint",
            Self::Committing => "waiting for the commit of its last checkpoint",
        })
    }
}

/// The collective operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// A sum over ranks, on all of them.
    AllReduce,
    /// Every rank's rows, on all of them.
    AllGather,
    /// A sum over ranks, a stretch on each.
    ReduceScatter,
    /// One rank's tensor, on all of them.
    Broadcast,
    /// Nothing but that all are there.
    Barrier,
}

impl OperationKind {
    /// All; the place is the number in the trainer's record.
    pub const ALL: [Self; 5] = [Self::AllReduce, Self::AllGather, Self::ReduceScatter, Self::Broadcast, Self::Barrier];

    /// As the errors of collectives call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AllReduce => "all_reduce",
            Self::AllGather => "all_gather",
            Self::ReduceScatter => "reduce_scatter",
            Self::Broadcast => "broadcast",
            Self::Barrier => "barrier",
        }
    }
}

/// One collective operation, as a rank called it. Ranks that are in step call the same ones under the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Its number among the calls of this rank in this generation, from 0.
    pub number: u64,
    /// What it is.
    pub kind: OperationKind,
    /// The bytes of the tensor that the rank gave; of a gather, of all rows that it is to get.
    pub bytes: u64,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} number {} ({} bytes)", self.kind.name(), self.number, self.bytes)
    }
}

/// What the kernel says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProcessState {
    /// It runs, or waits for something that wakes it.
    #[default]
    Alive,
    /// A signal stopped it (state T).
    Stopped,
    /// A debugger holds it (state t).
    Traced,
    /// It waits in the kernel and cannot be woken (state D): for a disk or a driver.
    Uninterruptible,
}

/// Where a trainer stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pulse {
    /// The membership it works in.
    pub generation: Generation,
    /// The step that it takes, from 1; 0 before the first.
    pub step: Step,
    /// What it does.
    pub doing: Doing,
    /// The newest collective operations that it called, oldest first; the last is the newest.
    pub operations: Vec<Operation>,
    /// Whether it is in the newest of them and waits for its peers.
    pub waiting: bool,
    /// How long nothing of this has changed; absent when something has, a moment ago.
    pub quiet: Option<Duration>,
    /// The 99th percentile of how long its recent steps took; absent before there were a few.
    pub slow_step: Option<Duration>,
    /// Its process.
    pub process: ProcessState,
}

impl Pulse {
    /// The newest operation that it called.
    pub fn newest(&self) -> Option<Operation> {
        self.operations.last().copied()
    }
}
