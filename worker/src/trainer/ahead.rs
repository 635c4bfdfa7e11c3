//! Batches made ahead of the training by a thread of their own.

use super::error::TrainerError;
use std::{
    ops::Range,
    sync::mpsc::{Receiver, sync_channel},
    time::{Duration, Instant},
};

/// Batches of steps, in order. Dropped, it ends its thread at the next batch.
#[derive(Debug)]
pub struct Ahead<T> {
    batches: Receiver<Result<T, TrainerError>>,
    waited: Duration,
}

impl<T: Send + 'static> Ahead<T> {
    /// Makes the batches of `steps`, so many of them before they are asked for. After an error there are no more.
    pub fn start(
        steps: Range<u64>,
        depth: usize,
        mut make: impl FnMut(u64) -> Result<T, TrainerError> + Send + 'static,
    ) -> Self {
        let (sender, batches) = sync_channel(depth);
        std::thread::spawn(move || {
            for step in steps {
                let made = make(step);
                let failed = made.is_err();
                if sender.send(made).is_err() || failed {
                    return;
                }
            }
        });
        Self { batches, waited: Duration::ZERO }
    }

    /// How long [`Iterator::next`] waited so far.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

impl<T> Iterator for Ahead<T> {
    type Item = Result<T, TrainerError>;

    /// The next batch; absent after the last one, and after an error.
    fn next(&mut self) -> Option<Result<T, TrainerError>> {
        let started = Instant::now();
        let batch = self.batches.recv().ok();
        self.waited += started.elapsed();
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_come_in_order_and_nothing_after_an_error() {
        let mut all = Ahead::start(3..6, 2, Ok);
        assert_eq!(all.by_ref().map(Result::unwrap).collect::<Vec<_>>(), [3, 4, 5]);
        let fail = |step| if step == 4 { Err(TrainerError::Plan("no".to_owned())) } else { Ok(step) };
        let mut some = Ahead::start(3..6, 2, fail);
        assert_eq!(some.next().unwrap().unwrap(), 3);
        assert!(some.next().unwrap().is_err() && some.next().is_none());
    }
}
