//! This trainer's record of where it stands, as its agent reads it from outside: written as the training goes, so that it says
//! where a trainer is that cannot say anything.

use crate::supervisor::pulse::{self, Mark};
use common::{
    ids::Generation,
    pulse::{Doing, OperationKind},
};
use std::{
    collections::VecDeque,
    fs::File,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Of so many steps the 99th percentile is known.
const RECENT: usize = 100;
/// So many steps say how long one takes.
const ENOUGH: usize = 5;

/// The record. Clones write the same one; one that was opened nowhere is written nowhere.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    file: File,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    mark: Mark,
    began: Option<Instant>,
    recent: VecDeque<Duration>,
    /// Writing failed once: that was told.
    broken: bool,
}

impl Pulse {
    /// Writes to the file that the agent made.
    ///
    /// # Errors
    /// When it is not there.
    pub fn open(path: &Path) -> io::Result<Self> {
        let inner = Inner { file: pulse::open(path)?, state: Mutex::default() };
        Ok(Self(Some(Arc::new(inner))))
    }

    /// A plan begins.
    pub fn begin(&self, generation: Generation) {
        self.change(|state| {
            *state = State { broken: state.broken, ..State::default() };
            state.mark.generation = generation.0;
            state.mark.doing = Doing::Preparing;
        });
    }

    /// The trainer does something else from now on.
    pub fn doing(&self, doing: Doing) {
        self.change(|state| state.mark.doing = doing);
    }

    /// It goes on with what it does.
    pub fn moved(&self) {
        self.change(|_| {});
    }

    /// The step of this number, from 1, begins with the wait for its batch.
    pub fn step(&self, number: u64) {
        self.change(|state| {
            state.mark.step = number;
            state.mark.doing = Doing::LoadingBatch;
            state.began = Some(Instant::now());
        });
    }

    /// The step is done, as far as this rank's host goes.
    pub fn stepped(&self) {
        self.change(|state| {
            let Some(began) = state.began.take() else { return };
            if state.recent.len() == RECENT {
                state.recent.pop_front();
            }
            state.recent.push_back(began.elapsed());
            state.mark.slow_step_ns = slow(&state.recent).map_or(0, |slow| slow.as_nanos() as u64);
        });
    }

    /// A collective operation is called; returns its number among those of this membership.
    pub fn call(&self, kind: OperationKind, bytes: u64) {
        self.change(|state| state.mark.call(kind, bytes));
    }

    /// The host waits for the device, and so for the peers: operations on a GPU have returned before they are done.
    pub fn waits(&self) {
        self.change(|state| state.mark.waiting = true);
    }

    /// What was waited for is there: a call has returned, or the device is done.
    pub fn returned(&self) {
        self.change(|state| state.mark.waiting = false);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let Some(inner) = &self.0 else { return };
        let mut state: MutexGuard<'_, State> = inner.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        state.mark.since_ns = pulse::now_ns();
        if let Err(error) = pulse::write(&inner.file, &state.mark)
            && !std::mem::replace(&mut state.broken, true)
        {
            tracing::warn!(%error, "cannot write where this trainer stands: the agent will not see that it is stuck");
        }
    }
}

/// The 99th percentile; absent of too few.
fn slow(recent: &VecDeque<Duration>) -> Option<Duration> {
    if recent.len() < ENOUGH {
        return None;
    }
    let mut sorted: Vec<Duration> = recent.iter().copied().collect();
    let place = (sorted.len() * 99).div_ceil(100) - 1;
    Some(*sorted.select_nth_unstable(place).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_says_what_the_trainer_did_last_and_a_plan_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pulse");
        assert!(Pulse::open(&path).is_err());
        pulse::create(&path).unwrap();
        let pulse = Pulse::open(&path).unwrap();
        let read = || pulse::read(&path).unwrap().unwrap();
        pulse.begin(Generation(2));
        assert_eq!((read().generation, read().doing, read().called), (2, Doing::Preparing, 0));
        pulse.step(1);
        pulse.doing(Doing::Computing);
        pulse.clone().call(OperationKind::AllReduce, 8);
        assert_eq!((read().step, read().doing, read().called, read().waiting), (1, Doing::Computing, 1, true));
        pulse.returned();
        pulse.stepped();
        assert!(!read().waiting && read().since_ns > 0 && read().slow_step_ns == 0);
        pulse.waits();
        assert_eq!((read().waiting, read().called), (true, 1));
        pulse.returned();
        assert!(!read().waiting);
        (2..8).for_each(|number| {
            pulse.step(number);
            pulse.stepped();
        });
        assert!(read().slow_step_ns > 0);
        pulse.begin(Generation(3));
        assert_eq!((read().step, read().called, read().slow_step_ns), (0, 0, 0));
        Pulse::default().step(1);
    }

    #[test]
    fn one_slow_step_of_a_hundred_is_not_the_measure_of_all() {
        let check = |steps: &[u64], expected: Option<u64>| {
            let steps = steps.iter().map(|ms| Duration::from_millis(*ms)).collect();
            assert_eq!(slow(&steps), expected.map(Duration::from_millis));
        };
        check(&[1, 2, 3, 4], None);
        check(&[5, 1, 2, 3, 4], Some(5));
        let mut many: Vec<u64> = (1..=99).collect();
        many.push(60_000);
        check(&many, Some(99));
    }
}
