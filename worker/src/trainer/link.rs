//! The trainer's end of the agent's socket: reports go out, plans and orders come in, and a lost agent is waited for.
//!
//! Two threads own the socket: one connects and reads, one writes. Training never waits for either.

#[cfg(test)]
mod fixtures;
mod inbox;
mod outbox;
#[cfg(test)]
mod tests;
mod threads;

use self::{inbox::Inbox, outbox::Outbox};
use super::interrupt::Interrupt;
use crate::supervisor::{frame::FrameError, ipc::Report};
use common::{ids::Step, manifest::Manifest, plan::TrainPlan};
use std::{
    io,
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// How long a wait for an order lasts before it looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Why the trainer has no agent.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The first connection did not come about.
    #[error("cannot connect to the agent's socket {socket} within {seconds} s: {source}")]
    Connect {
        /// Where the agent should be.
        socket: PathBuf,
        /// How long it was tried.
        seconds: u64,
        /// What the system said at the last try.
        source: io::Error,
    },
    /// An order that cannot be read.
    #[error("an order cannot be understood: {0}")]
    Order(FrameError),
    /// No thread could be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// Why a stage is to end before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The coordinator ordered it.
    Ordered,
    /// No agent was there for the lease.
    AgentGone,
}

/// The way to the agent. Clones are the same way; the last one closes it.
#[derive(Debug, Clone)]
pub struct Link(Arc<Handle>);

#[derive(Debug)]
struct Handle(Arc<Shared>);

/// What the link's threads and its users share.
#[derive(Debug)]
struct Shared {
    socket: PathBuf,
    peer: String,
    lease: Duration,
    state: Mutex<State>,
    changed: Condvar,
    /// Breaks off the plan that runs.
    interrupt: Interrupt,
}

#[derive(Debug)]
struct State {
    inbox: Inbox,
    outbox: Outbox,
    /// The connection that reports are written to, and its number; absent while there is none.
    stream: Option<(u64, Arc<UnixStream>)>,
    /// How many connections there were.
    connections: u64,
    /// Since when there has been no connection; absent while there is one.
    gone_since: Option<Instant>,
    /// No agent was there for the lease. It stays so: the trainer is about to end.
    lapsed: bool,
    /// An order that could not be read; taken by the next wait for a plan.
    broken: Option<FrameError>,
    /// There will be no more plans, or the last user is gone.
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change, at most so long.
    fn wait<'a>(&self, state: MutexGuard<'a, State>, longest: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, longest).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Link {
    /// Connects to the agent at `socket`. `peer` is the address that is told to it; `lease` is how long the trainer
    /// goes on without an agent, now and later.
    ///
    /// # Errors
    /// When nobody listens within the lease.
    pub fn connect(socket: &Path, peer: String, lease: Duration) -> Result<Link, LinkError> {
        let state = State {
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            stream: None,
            connections: 0,
            gone_since: Some(Instant::now()),
            lapsed: false,
            broken: None,
            closed: false,
        };
        let shared = Shared {
            socket: socket.to_owned(),
            peer,
            lease,
            state: Mutex::new(state),
            changed: Condvar::new(),
            interrupt: Interrupt::default(),
        };
        let link = Link(Arc::new(Handle(Arc::new(shared))));
        let stream = threads::first_connection(&link.0.0)?;
        let reader = link.0.0.clone();
        spawn("link-read", move || threads::read(&reader, Some(stream)))?;
        let writer = link.0.0.clone();
        spawn("link-write", move || threads::write(&writer))?;
        Ok(link)
    }

    /// Takes a report and returns at once. Of progress only the newest goes out, at most once a
    /// second; everything else goes out in order, and again to a new agent if it belongs to the present plan.
    pub fn report(&self, report: Report) {
        let dropped = self.0.0.lock().outbox.push(report);
        if dropped.is_some() {
            tracing::warn!("the agent has been away for long: dropped the oldest report");
        }
        self.0.0.changed.notify_all();
    }

    /// Waits for the next plan. `None` when no agent was there for the lease.
    ///
    /// # Errors
    /// When the agent sent something that cannot be understood.
    pub fn next_plan(&self) -> Result<Option<TrainPlan>, LinkError> {
        let shared = &self.0.0;
        let mut state = shared.lock();
        loop {
            if let Some(error) = state.broken.take() {
                return Err(LinkError::Order(error));
            }
            if state.lapsed {
                tracing::warn!(lease_s = shared.lease.as_secs_f64(), "no agent for the lease, ending");
                state.closed = true;
                shared.changed.notify_all();
                return Ok(None);
            }
            if let Some(plan) = state.inbox.next_plan() {
                state.outbox.begin(plan.generation);
                shared.interrupt.reset();
                return Ok(Some(plan));
            }
            state = shared.wait(state, LOOK_AGAIN);
        }
    }

    /// Whether the stage that runs is to write a checkpoint and end. Cheap enough for every step.
    pub fn stop_requested(&self) -> Option<Stop> {
        let state = self.0.0.lock();
        if state.lapsed { Some(Stop::AgentGone) } else { state.inbox.stop() }
    }

    /// Whether a plan of a later membership waits for the one that runs to end. Cheap enough for every step.
    pub fn is_superseded(&self) -> bool {
        self.0.0.lock().inbox.is_superseded()
    }

    /// What breaks the plan that runs off when a later membership cannot wait for it.
    pub fn interrupt(&self) -> &Interrupt {
        &self.0.0.interrupt
    }

    /// The orders to create a manifest, as they come; ends when there will be no more plans.
    pub fn manifest_orders(&self) -> impl Iterator<Item = (Step, Box<Manifest>)> {
        std::iter::from_fn(|| {
            let shared = &self.0.0;
            let mut state = shared.lock();
            loop {
                if let Some(order) = state.inbox.next_manifest() {
                    return Some(order);
                }
                if state.closed {
                    return None;
                }
                state = shared.wait(state, LOOK_AGAIN);
            }
        })
    }

    /// Waits until every report is written; false when some are left at the deadline.
    pub fn flush(&self, deadline: Duration) -> bool {
        let shared = &self.0.0;
        let end = Instant::now() + deadline;
        let mut state = shared.lock();
        state.outbox.hasten();
        shared.changed.notify_all();
        while !state.outbox.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = shared.wait(state, left);
        }
        true
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        if let Some((_, stream)) = &state.stream {
            // It fails when the agent is gone already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.0.changed.notify_all();
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), LinkError> {
    thread::Builder::new().name(name.to_owned()).spawn(run).map(drop).map_err(LinkError::Thread)
}
