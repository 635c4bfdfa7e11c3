//! What is known of a loss whose cause is more than a signal: a rank that is stuck, memory that ran out, replicas that differ.

use crate::{
    ids::{Rank, Step},
    pulse::{Doing, Operation, ProcessState},
};
use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf};

/// A rank that got no further, and was ended for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stuck {
    /// The step that it took, from 1; 0 before the first.
    pub step: Step,
    /// What it did.
    pub doing: Doing,
    /// The newest collective operation that it called; absent before the first.
    pub operation: Option<Operation>,
    /// Why it is the one.
    pub because: Because,
    /// How long it had got no further, in seconds.
    pub quiet_s: u64,
    /// How long it had for that, in seconds.
    pub limit_s: u64,
    /// The ranks that wait for it, and the operation in which they do; empty where that is not known.
    pub waiting: Vec<Rank>,
    /// See `waiting`.
    pub waiting_in: Option<Operation>,
    /// Where on its machine what its threads did was kept before it was ended; absent before, and where that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stacks: Option<PathBuf>,
}

/// Why a rank counts as stuck.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "because", rename_all = "kebab-case")]
pub enum Because {
    /// A signal stopped its process.
    Stopped,
    /// It waits for nobody and does not go on.
    NoProgress {
        /// What the kernel says of it.
        process: ProcessState,
    },
    /// It called another operation than its peers under the same number: one of them was left out or was one too many.
    Mismatch {
        /// What it called.
        called: Operation,
        /// What its peers called under this number.
        due: Operation,
    },
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stuck for {} s (limit {} s)", self.quiet_s, self.limit_s)?;
        if self.step.0 > 0 {
            write!(f, " in step {}", self.step)?;
        }
        write!(f, " while {}", self.doing)?;
        if let Some(operation) = self.operation {
            write!(f, ", its newest collective operation is {operation}")?;
        }
        match &self.because {
            Because::Stopped => write!(f, "; its process was stopped by a signal (state T)")?,
            Because::NoProgress { process: ProcessState::Uninterruptible } => {
                write!(
                    f,
                    "; its process waits in the kernel and cannot be woken (state D): look at its disk or device"
                )?;
            }
            Because::NoProgress { .. } => write!(f, "; it waits for no peer")?,
            Because::Mismatch { called, due } => write!(
                f,
                "; it called {called} where its peers called {due}: an operation was left out or was one too many on one side"
            )?,
        }
        if let (Some(operation), false) = (self.waiting_in, self.waiting.is_empty()) {
            write!(f, "; {} for it in {operation}", waits(&self.waiting))?;
        }
        Ok(())
    }
}

/// `rank 0 waits`, `ranks 0, 2 wait`.
fn waits(ranks: &[Rank]) -> String {
    match ranks {
        [one] => format!("rank {one} waits"),
        many => format!("ranks {} wait", join(many)),
    }
}

fn join(ranks: &[Rank]) -> String {
    ranks.iter().map(Rank::to_string).collect::<Vec<_>>().join(", ")
}

/// Memory that ran out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutOfMemory {
    /// Who said so.
    pub said_by: MemoryJudge,
    /// The most memory that the process was seen to have, in bytes; it may have had more for less than a second.
    pub peak_bytes: Option<u64>,
    /// What it or its group may have at most, in bytes; absent where there is no limit or it is not known.
    pub limit_bytes: Option<u64>,
}

/// Who ended a process, or refused it memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "said_by", rename_all = "kebab-case")]
pub enum MemoryJudge {
    /// The kernel, because the memory of its control group ran out.
    ControlGroup {
        /// The group.
        group: String,
    },
    /// The kernel, because the machine's memory ran out.
    Machine,
    /// An allocator in the process was refused.
    Allocator {
        /// What it said.
        message: String,
    },
    /// The GPU's memory ran out.
    Device {
        /// What was said.
        message: String,
    },
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.said_by {
            MemoryJudge::ControlGroup { group } => {
                write!(
                    f,
                    "out of memory: the kernel killed it, because the memory of its control group {group} ran out"
                )?;
            }
            MemoryJudge::Machine => {
                write!(f, "out of memory: the kernel killed it, because the memory of the machine ran out")?;
            }
            MemoryJudge::Allocator { message } => write!(f, "out of memory: {message}")?,
            MemoryJudge::Device { message } => write!(f, "out of memory on its GPU: {message}")?,
        }
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        match (self.peak_bytes, self.limit_bytes) {
            (Some(peak), Some(limit)) => {
                write!(f, "; it was seen with {:.2} GiB at most, the limit is {:.2} GiB", gib(peak), gib(limit))?;
            }
            (Some(peak), None) => write!(f, "; it was seen with {:.2} GiB at most", gib(peak))?,
            (None, Some(limit)) => write!(f, "; the limit is {:.2} GiB", gib(limit))?,
            (None, None) => {}
        }
        f.write_str(match self.said_by {
            MemoryJudge::Device { .. } => ". Lower the stage's `chunk`, or set `activation_checkpointing = true`",
            _ => ". Lower the stage's `chunk`, or run fewer trainers on a machine (`--trainers`)",
        })
    }
}

/// A rank whose replica of what is trained is not that of the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diverged {
    /// After which step.
    pub step: Step,
    /// Who differs from the majority; empty where no digest has one.
    pub ranks: Vec<Rank>,
    /// Every rank's digest in hex, by rank.
    pub digests: Vec<String>,
}

impl Diverged {
    /// Judges the digests of all ranks: absent when all are equal.
    pub fn judge(step: Step, digests: &[String]) -> Option<Self> {
        let first = digests.first()?;
        if digests.iter().all(|digest| digest == first) {
            return None;
        }
        let count = |digest: &String| digests.iter().filter(|other| *other == digest).count();
        let most = digests.iter().find(|digest| 2 * count(digest) > digests.len());
        let differs = |(rank, digest)| most.filter(|most| *most != digest).map(|_| Rank(rank));
        let ranks = (0..).zip(digests).filter_map(differs).collect();
        Some(Self { step, ranks, digests: digests.to_vec() })
    }
}

impl fmt::Display for Diverged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, ranks, digests } = self;
        match ranks.as_slice() {
            [] => write!(
                f,
                "after step {step} the ranks' parameters are not the same, and no more than half of them agree; the training goes \
                 back to its newest checkpoint, at which they did"
            )?,
            [one] => write!(f, "after step {step} the parameters of rank {one} are not those of the other ranks")?,
            many => write!(f, "after step {step} the parameters of ranks {} are not those of the others", join(many))?,
        }
        write!(f, " (digests by rank: {}): a fault of memory or of a device is likely", digests.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pulse::OperationKind;

    fn judged(digests: &[&str]) -> Option<Vec<u32>> {
        let digests: Vec<String> = digests.iter().map(|digest| (*digest).to_owned()).collect();
        Diverged::judge(Step(7), &digests).map(|diverged| diverged.ranks.iter().map(|rank| rank.0).collect())
    }

    #[test]
    fn the_minority_is_named_and_without_a_majority_nobody() {
        assert_eq!(judged(&[]), None);
        assert_eq!(judged(&["a", "a", "a"]), None);
        assert_eq!(judged(&["a", "b", "a"]), Some(vec![1]));
        assert_eq!(judged(&["b", "a", "c", "a", "a"]), Some(vec![0, 2]));
        assert_eq!(judged(&["a", "b"]), Some(vec![]));
        assert_eq!(judged(&["a", "a", "b", "b"]), Some(vec![]));
        assert_eq!(judged(&["a", "b", "c"]), Some(vec![]));
    }

    #[test]
    fn a_stuck_rank_is_one_sentence() {
        let operation = |number| Operation { number, kind: OperationKind::AllGather, bytes: 64 };
        let stuck = Stuck {
            step: Step(24),
            doing: Doing::Computing,
            operation: Some(operation(56)),
            because: Because::Stopped,
            quiet_s: 11,
            limit_s: 10,
            waiting: vec![Rank(0), Rank(2)],
            waiting_in: Some(operation(57)),
            stacks: None,
        };
        assert_eq!(
            stuck.to_string(),
            "stuck for 11 s (limit 10 s) in step 24 while computing, its newest collective operation is all_gather number 56 \
             (64 bytes); its process was stopped by a signal (state T); ranks 0, 2 wait for it in all_gather number 57 (64 bytes)"
        );
    }
}
