//! Storage that fails on purpose: `LLM2CLIP_STORAGE_FAULTS="write=ENOSPC@2"` in a trainer's environment. Without the variable nothing
//! ever fails here.
//!
//! `OPERATION=ACTION@NUMBER`, several parted by commas. The operations are those of [`Operation`], counted in the process from 1;
//! `NUMBER` may be a range, `2-4`, or open, `2-`. `…/RANK` means one rank alone, `…/RANK/GENERATION` in one membership alone. Actions:
//! `ENOSPC`, `EDQUOT`, `EIO`, `EROFS`, `EACCES`, `ESTALE`: what the system says instead; `hang`, `hang:MILLISECONDS`: storage does not
//! answer for so long; `kill`, `stop`: SIGKILL, SIGSTOP to the trainer.

use super::watch::Operation;
use common::ids::{Generation, Rank};
use rustix::{
    io::Errno,
    process::{Signal, getpid, kill_process},
};
use std::{
    collections::BTreeMap,
    io,
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The environment variable that arms them.
pub const VARIABLE: &str = "LLM2CLIP_STORAGE_FAULTS";

/// What happens in an operation's stead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Fail(Errno),
    /// Absent: for ever.
    Hang(Option<Duration>),
    Kill,
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fault {
    operation: Operation,
    action: Action,
    first: u64,
    /// Absent: from the first one on.
    last: Option<u64>,
    rank: Option<Rank>,
    generation: Option<Generation>,
}

#[derive(Debug, Default)]
struct Counts {
    of: Option<(Rank, Generation)>,
    done: BTreeMap<Operation, u64>,
}

/// The faults that this process was told to have.
#[derive(Debug, Default)]
pub struct Faults {
    armed: Vec<Fault>,
    counts: Mutex<Counts>,
}

impl Faults {
    /// Those of the environment.
    ///
    /// # Errors
    /// What of it is none.
    pub fn from_environment() -> Result<Self, String> {
        std::env::var(VARIABLE).unwrap_or_default().parse()
    }

    pub(super) fn of(&self, rank: Rank, generation: Generation) {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).of = Some((rank, generation));
    }

    pub(super) fn at(&self, operation: Operation) -> io::Result<()> {
        if self.armed.is_empty() {
            return Ok(());
        }
        let (number, of) = {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            let number = counts.done.entry(operation).or_default();
            *number += 1;
            (*number, counts.of)
        };
        let here = |fault: &&Fault| {
            let meant = fault.rank.is_none_or(|rank| of.is_some_and(|of| of.0 == rank))
                && fault.generation.is_none_or(|generation| of.is_some_and(|of| of.1 == generation));
            meant
                && fault.operation == operation
                && number >= fault.first
                && fault.last.is_none_or(|last| number <= last)
        };
        match self.armed.iter().find(here).map(|fault| fault.action) {
            None => Ok(()),
            Some(Action::Fail(errno)) => Err(errno.into()),
            Some(action @ (Action::Kill | Action::Stop)) => {
                let signal = if action == Action::Kill { Signal::KILL } else { Signal::STOP };
                // It cannot fail: a process may signal itself.
                let _ = kill_process(getpid(), signal);
                Ok(())
            }
            Some(Action::Hang(wait)) => {
                hang(wait);
                Ok(())
            }
        }
    }
}

fn hang(wait: Option<Duration>) {
    let began = Instant::now();
    loop {
        let left = match wait {
            None => Duration::from_secs(3600),
            Some(wait) => wait.saturating_sub(began.elapsed()),
        };
        if left.is_zero() {
            return;
        }
        std::thread::park_timeout(left);
    }
}

impl FromStr for Faults {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let all = parts.map(|part| {
            fault(part).ok_or_else(|| {
                format!("{VARIABLE}: `{part}` is no storage fault, such as write=ENOSPC@2 or sync=hang:3000@1")
            })
        });
        Ok(Self { armed: all.collect::<Result<_, _>>()?, counts: Mutex::default() })
    }
}

fn fault(text: &str) -> Option<Fault> {
    let (name, what) = text.split_once('=')?;
    let (action, place) = what.split_once('@')?;
    let operation = Operation::ALL.into_iter().find(|operation| operation.name() == name)?;
    let action = match action {
        "ENOSPC" => Action::Fail(Errno::NOSPC),
        "EDQUOT" => Action::Fail(Errno::DQUOT),
        "EIO" => Action::Fail(Errno::IO),
        "EROFS" => Action::Fail(Errno::ROFS),
        "EACCES" => Action::Fail(Errno::ACCESS),
        "ESTALE" => Action::Fail(Errno::STALE),
        "kill" => Action::Kill,
        "stop" => Action::Stop,
        "hang" => Action::Hang(None),
        _ => Action::Hang(Some(Duration::from_millis(action.strip_prefix("hang:")?.parse().ok()?))),
    };
    let mut place = place.split('/');
    let numbers = place.next()?;
    let (first, last) = match numbers.split_once('-') {
        Some((first, "")) => (first.parse().ok()?, None),
        Some((first, last)) => (first.parse().ok()?, Some(last.parse().ok()?)),
        None => (numbers.parse().ok()?, Some(numbers.parse().ok()?)),
    };
    let rank = place.next().map(|rank| rank.parse().map(Rank)).transpose().ok()?;
    let generation = place.next().map(|number| number.parse().map(Generation)).transpose().ok()?;
    let whole = place.next().is_none() && first > 0 && last.is_none_or(|last| last >= first);
    whole.then_some(Fault { operation, action, first, last, rank, generation })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(faults: &Faults, operation: Operation, times: usize) -> Vec<bool> {
        (0..times).map(|_| faults.at(operation).is_err()).collect()
    }

    #[test]
    fn a_fault_happens_in_the_operations_it_names_and_in_no_other() {
        let faults: Faults = "write=ENOSPC@2, sync=EIO@2-3, rename=EROFS@2-".parse().unwrap();
        assert_eq!(errors(&faults, Operation::Write, 3), [false, true, false]);
        assert_eq!(errors(&faults, Operation::Sync, 4), [false, true, true, false]);
        assert_eq!(errors(&faults, Operation::Rename, 3), [false, true, true]);
        assert_eq!(errors(&faults, Operation::Create, 3), [false; 3]);
        let full: Faults = "write=ENOSPC@1".parse().unwrap();
        assert_eq!(full.at(Operation::Write).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn a_fault_of_one_rank_or_membership_leaves_the_others_alone() {
        let faults: Faults = "write=EIO@1-/1/3".parse().unwrap();
        let at = |rank, generation| {
            faults.of(Rank(rank), Generation(generation));
            faults.at(Operation::Write).is_err()
        };
        assert_eq!([at(1, 3), at(0, 3), at(1, 4)], [true, false, false]);
    }

    #[test]
    fn storage_that_does_not_answer_answers_late() {
        let faults: Faults = "sync=hang:20@1".parse().unwrap();
        let began = Instant::now();
        faults.at(Operation::Sync).unwrap();
        assert!(began.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn what_is_none_is_named() {
        for wrong in [
            "write",
            "write=ENOSPC",
            "write=E@1",
            "dance=EIO@1",
            "write=EIO@0",
            "write=EIO@3-2",
            "write=EIO@1/x",
            "sync=hang:x@1",
        ] {
            let error = wrong.parse::<Faults>().unwrap_err();
            assert!(error.contains(wrong) && error.contains(VARIABLE), "{error}");
        }
    }
}
