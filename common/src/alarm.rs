//! What is wrong with the storage of checkpoints while a training goes on.

use crate::{
    ids::{Rank, Step},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf};

/// Why a rank has no checkpoint of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageTrouble {
    /// Who says so.
    pub rank: Rank,
    /// The checkpoint that there is not.
    pub step: Step,
    /// The file or folder that it is about.
    pub file: PathBuf,
    /// What it is.
    #[serde(flatten)]
    pub what: Trouble,
}

/// What keeps a checkpoint from being there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "trouble", rename_all = "kebab-case")]
pub enum Trouble {
    /// It could not be written.
    Failed {
        /// Operation, file, what the system said, what to do.
        message: String,
    },
    /// It was left out: storage is still at work on something earlier.
    Slow {
        /// At what: `write`, `sync`, …
        operation: String,
        /// Of the checkpoint of which step.
        earlier: Step,
        /// For how many seconds it has been at that checkpoint.
        seconds: u64,
    },
    /// It was written and is not whole any more.
    Damaged {
        /// What differs.
        message: String,
        /// The one before it, from which the training goes on.
        instead: Step,
    },
}

impl fmt::Display for StorageTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, step, file, what } = self;
        match what {
            Trouble::Failed { message } => write!(f, "rank {rank}: {message}"),
            Trouble::Slow { operation, earlier, seconds } => write!(
                f,
                "rank {rank}: storage has been at the checkpoint of step {earlier} for {seconds} s, now in `{operation}` of {}: that of \
                 step {step} is left out. Look at the shared storage; the training goes on",
                file.display()
            ),
            Trouble::Damaged { message, instead } => {
                write!(f, "rank {rank}: {message}; the training goes on from the checkpoint of step {instead}")
            }
        }
    }
}

/// Checkpoints that are not written, as long as none is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageAlarm {
    /// Since when.
    pub since: Timestamp,
    /// The first step without its checkpoint.
    pub since_step: Step,
    /// How many checkpoints there are not.
    pub missed: u64,
    /// The newest word of it.
    pub newest: StorageTrouble,
}

impl StorageAlarm {
    /// In a few words, for a line of progress.
    pub fn short(&self) -> String {
        let verb = if matches!(self.newest.what, Trouble::Slow { .. }) { "are left out" } else { "fail" };
        format!("CHECKPOINTS {verb} since step {}", self.since_step)
    }
}

/// "checkpoints fail since step 8 (3 are missing): …".
impl fmt::Display for StorageAlarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if matches!(self.newest.what, Trouble::Slow { .. }) { "are left out" } else { "fail" };
        let missed = if self.missed == 1 { "1 is missing".to_owned() } else { format!("{} are missing", self.missed) };
        write!(f, "checkpoints {verb} since step {} ({missed}): {}", self.since_step, self.newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(what: Trouble, expected: &str) {
        let newest = StorageTrouble { rank: Rank(1), step: Step(12), file: "/out/rank-00001.safetensors".into(), what };
        let alarm = StorageAlarm { since: Timestamp(0), since_step: Step(8), missed: 2, newest };
        assert_eq!(alarm.to_string(), expected);
        let json = serde_json::to_string(&alarm).unwrap();
        assert_eq!(serde_json::from_str::<StorageAlarm>(&json).unwrap(), alarm);
    }

    #[test]
    fn an_alarm_says_since_when_who_which_file_and_what() {
        check(
            Trouble::Failed { message: "no space".into() },
            "checkpoints fail since step 8 (2 are missing): rank 1: no space",
        );
        check(
            Trouble::Slow { operation: "sync".into(), earlier: Step(8), seconds: 31 },
            "checkpoints are left out since step 8 (2 are missing): rank 1: storage has been at the checkpoint of step 8 for 31 s, \
             now in `sync` of /out/rank-00001.safetensors: that of step 12 is left out. Look at the shared storage; the training \
             goes on",
        );
    }
}
