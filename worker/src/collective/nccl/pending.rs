//! What is on the communicator's stream and not done: judged by deadlines, NCCL's word and the peers' connections.
//!
//! The thread that puts operations on the stream, the monitor, and whoever waits or aborts meet here. The first failure
//! wins: it ends the ring and the communicator, and every later call gets it.

use super::{
    communicator::{Communicator, Progress},
    error::NcclError,
    ras,
    streams::Passed,
};
use crate::collective::{Collective as _, CollectiveError, TcpRing};
use common::ids::Rank;
use std::{
    collections::VecDeque,
    io::Write as _,
    os::unix::net::UnixStream,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// So many operations may be on the stream; the next waits until there is room.
const MOST_PENDING: usize = 1024;
/// How long NCCL's own diagnosis may take.
const DIAGNOSIS_DEADLINE: Duration = Duration::from_secs(1);

/// One operation on the GPU.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operation {
    pub name: &'static str,
    pub sequence: u64,
    began: Instant,
    deadline: Duration,
}

impl Operation {
    /// NCCL's error as this operation's.
    pub(super) fn failed(&self, source: NcclError) -> CollectiveError {
        match source {
            NcclError::Aborted { reason } => CollectiveError::Aborted { reason },
            source => CollectiveError::Nccl { operation: self.name, sequence: self.sequence, source },
        }
    }

    /// libtorch's error as this operation's.
    pub(super) fn stream_failed(&self, error: &tch::TchError) -> CollectiveError {
        CollectiveError::Stream { operation: self.name, sequence: self.sequence, reason: error.to_string() }
    }

    fn lost(&self, peer: Rank) -> CollectiveError {
        let reason = "it closed the connection".to_owned();
        CollectiveError::PeerLost { peer, operation: self.name, sequence: self.sequence, reason }
    }

    fn is_late(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) >= self.deadline
    }
}

struct Pending {
    operation: Operation,
    end: Box<dyn Passed>,
}

#[derive(Default)]
struct State {
    /// In the stream's order.
    pending: VecDeque<Pending>,
    /// On its way to the stream.
    launching: Option<Operation>,
    /// The next operation's number.
    next: u64,
    /// A neighbour whose connection is closed. That alone is no failure: it may have done its part and left.
    lost: Option<Rank>,
    failure: Option<CollectiveError>,
    /// Whether a caller was given the failure.
    told: bool,
    /// Whether the monitor is to end.
    closed: bool,
}

enum Verdict {
    Failed(CollectiveError),
    Stalled(Operation),
}

/// See the file's text.
pub(super) struct Operations {
    communicator: Communicator,
    ring: TcpRing,
    state: Mutex<State>,
    /// Wakes the monitor, which sleeps while nothing is pending.
    bell: UnixStream,
}

/// Waits a little, the longer the longer it has been waited already: NCCL takes microseconds to take an operation.
pub(super) fn pause(since: Instant) {
    match since.elapsed() {
        short if short < Duration::from_micros(200) => thread::yield_now(),
        longer if longer < Duration::from_millis(20) => thread::park_timeout(Duration::from_micros(50)),
        _ => thread::park_timeout(Duration::from_millis(1)),
    }
}

impl Operations {
    pub(super) fn new(communicator: Communicator, ring: TcpRing, bell: UnixStream) -> Self {
        Self { communicator, ring, state: Mutex::default(), bell }
    }

    pub(super) fn communicator(&self) -> &Communicator {
        &self.communicator
    }

    pub(super) fn ring(&self) -> &TcpRing {
        &self.ring
    }

    /// Waits for room and begins the next operation; it is watched from here on.
    ///
    /// # Errors
    /// When the collective is dead, or a peer is gone.
    pub(super) fn begin(&self, name: &'static str, deadline: Duration) -> Result<Operation, CollectiveError> {
        let began = Instant::now();
        loop {
            {
                let mut state = self.lock();
                if state.failure.is_some() {
                    return Err(state.tell());
                }
                let operation = Operation { name, sequence: state.next, began: Instant::now(), deadline };
                if let Some(peer) = state.lost {
                    drop(state);
                    return Err(self.end(operation.lost(peer)));
                }
                if state.pending.len() < MOST_PENDING {
                    state.next += 1;
                    state.launching = Some(operation);
                    drop(state);
                    self.ring_bell();
                    return Ok(operation);
                }
            }
            pause(began);
            self.check();
        }
    }

    /// Waits until NCCL has taken what was given to it last.
    ///
    /// # Errors
    /// When the operation fails, is late, or the collective dies meanwhile; to be passed to `end`.
    pub(super) fn taken(&self, operation: &Operation, mut progress: Progress) -> Result<(), CollectiveError> {
        let began = Instant::now();
        while progress == Progress::Going {
            pause(began);
            self.check();
            self.alive()?;
            progress = self.communicator.poll().map_err(|source| operation.failed(source))?;
        }
        Ok(())
    }

    /// The operation being launched is on the stream, and done when `end` has passed.
    pub(super) fn launched(&self, operation: Operation, end: Box<dyn Passed>) {
        let mut state = self.lock();
        state.launching = None;
        if state.failure.is_none() {
            state.pending.push_back(Pending { operation, end });
        }
    }

    /// The operation being launched had nothing to put on the stream, or is done already.
    pub(super) fn done(&self) {
        self.lock().launching = None;
    }

    /// Waits until nothing is pending.
    ///
    /// # Errors
    /// When an operation fails, is late, or the collective is dead.
    pub(super) fn finish(&self) -> Result<(), CollectiveError> {
        let began = Instant::now();
        loop {
            self.check();
            self.alive().map_err(|error| self.end(error))?;
            if self.lock().pending.is_empty() {
                return Ok(());
            }
            pause(began);
        }
    }

    /// Looks at what is pending, and ends everything when something is wrong with it.
    pub(super) fn check(&self) {
        let verdict = self.lock().judge(Instant::now(), &self.communicator);
        match verdict {
            None => {}
            Some(Verdict::Failed(error)) => self.fail(error),
            Some(Verdict::Stalled(operation)) => {
                let said = ras::fetch(&ras::address(), DIAGNOSIS_DEADLINE);
                self.fail(CollectiveError::Stalled {
                    operation: operation.name,
                    sequence: operation.sequence,
                    deadline: operation.deadline,
                    diagnosis: match said {
                        Some(text) => format!("NCCL's diagnosis: {text}"),
                        None => "NCCL's diagnosis does not answer".to_owned(),
                    },
                });
            }
        }
    }

    /// Ends the ring and the communicator; the first failure is the one that is told.
    pub(super) fn fail(&self, error: CollectiveError) {
        let text = match &error {
            CollectiveError::Aborted { reason } => reason.clone(),
            error => error.to_string(),
        };
        let pending = {
            let mut state = self.lock();
            if state.failure.is_some() {
                return;
            }
            state.failure = Some(error);
            std::mem::take(&mut state.pending)
        };
        // The peers first: they wait for nothing but the connections' end.
        self.ring.abort(&text);
        self.communicator.abort(&text);
        // Only now: until the abort the events' operations may run.
        drop(pending);
    }

    /// Fails, and gives the error that the caller is to get.
    pub(super) fn end(&self, error: CollectiveError) -> CollectiveError {
        self.fail(error);
        self.lock().tell()
    }

    /// A neighbour's connection is closed.
    pub(super) fn lost(&self, peer: Rank) {
        self.lock().lost.get_or_insert(peer);
    }

    /// Whether there is something to look at from time to time.
    pub(super) fn is_active(&self) -> bool {
        self.lock().is_active()
    }

    /// Lets the monitor end.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.ring_bell();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Whether nothing is pending and nothing has failed.
    pub(super) fn is_at_rest(&self) -> bool {
        let state = self.lock();
        state.failure.is_none() && !state.is_active()
    }

    /// The failure, if there is one; to be passed to `end`.
    fn alive(&self) -> Result<(), CollectiveError> {
        self.lock().failure.clone().map_or(Ok(()), Err)
    }

    fn ring_bell(&self) {
        // When it is full the monitor has been woken often enough.
        let _ = (&self.bell).write(&[1]);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_active(&self) -> bool {
        self.failure.is_none() && (self.launching.is_some() || !self.pending.is_empty())
    }

    /// Forgets what is done; what is wrong with the rest.
    fn judge(&mut self, now: Instant, communicator: &Communicator) -> Option<Verdict> {
        while let Some(first) = self.pending.front() {
            match first.end.passed() {
                Ok(true) => drop(self.pending.pop_front()),
                Ok(false) => break,
                Err(error) => return Some(Verdict::Failed(first.operation.stream_failed(&error))),
            }
        }
        if !self.is_active() {
            return None;
        }
        let operation = self.pending.front().map(|pending| pending.operation).or(self.launching)?;
        if let Err(error) = communicator.peek() {
            return Some(Verdict::Failed(operation.failed(error)));
        }
        if let Some(peer) = self.lost {
            return Some(Verdict::Failed(operation.lost(peer)));
        }
        operation.is_late(now).then_some(Verdict::Stalled(operation))
    }

    /// The failure as it is the first time; afterwards that the collective is dead of it.
    fn tell(&mut self) -> CollectiveError {
        let failure =
            self.failure.clone().unwrap_or(CollectiveError::Aborted { reason: "without a reason".to_owned() });
        if !std::mem::replace(&mut self.told, true) {
            return failure;
        }
        match failure {
            CollectiveError::Aborted { reason } => CollectiveError::Aborted { reason },
            error => CollectiveError::Aborted { reason: error.to_string() },
        }
    }
}
