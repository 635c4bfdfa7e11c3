//! The thread that looks after what is on the stream while its owner computes: it sleeps until an operation begins or a
//! neighbour's connection closes, and then looks every few milliseconds.

use super::pending::Operations;
use crate::collective::{CollectiveError, ring::Lifeline};
use std::{
    io::Read as _,
    os::{fd::AsFd as _, unix::net::UnixStream},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

/// Between two looks: right after something began, and at most.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(10));

/// A running monitor. Ends with this.
pub(super) struct Monitor {
    operations: Arc<Operations>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Starts it. `ear` is the other end of the operations' bell.
    ///
    /// # Errors
    /// When the system has no thread for it.
    pub(super) fn start(operations: Arc<Operations>, lifeline: Lifeline, ear: UnixStream) -> std::io::Result<Self> {
        let watched = operations.clone();
        let thread =
            thread::Builder::new().name("nccl-monitor".into()).spawn(move || watch(&watched, lifeline, &ear))?;
        Ok(Self { operations, thread: Some(thread) })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.operations.close();
        if let Some(thread) = self.thread.take() {
            // A panic of its own was printed where it happened.
            let _ = thread.join();
        }
    }
}

fn watch(operations: &Operations, mut lifeline: Lifeline, ear: &UnixStream) {
    let mut interval = INTERVALS.0;
    while !operations.is_closed() {
        let timeout = operations.is_active().then_some(interval);
        let seen = match lifeline.wait(ear.as_fd(), timeout) {
            Ok(seen) => seen,
            Err(error) => {
                return operations.fail(CollectiveError::Aborted { reason: format!("watching the peers: {error}") });
            }
        };
        interval = if seen.woken { INTERVALS.0 } else { (interval * 2).min(INTERVALS.1) };
        if seen.woken {
            let mut ear = ear;
            // It does not block, and how often the bell rang does not matter.
            let _ = ear.read(&mut [0; 256]);
        }
        if let Some(peer) = seen.lost {
            operations.lost(peer);
        }
        operations.check();
    }
}
