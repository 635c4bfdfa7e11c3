//! The link's two threads, and how they find the agent again.

use super::{LinkError, Shared, inbox::Taken, outbox::Next};
use crate::supervisor::{
    frame::{self, FrameError},
    ipc::{Order, Report},
    socket,
};
use common::daemon::backoff::Backoff;
use std::{
    io,
    net::Shutdown,
    os::unix::net::UnixStream,
    process,
    sync::Arc,
    time::{Duration, Instant},
};

/// Waits between two tries to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How long the agent may take to read from a full socket.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// How long the writer sleeps when nothing happens.
const IDLE: Duration = Duration::from_secs(60);

/// Connects within the lease.
///
/// # Errors
/// What the last try said.
pub fn first_connection(shared: &Shared) -> Result<Arc<UnixStream>, LinkError> {
    connect(shared, true).map_err(|source| LinkError::Connect {
        socket: shared.socket.clone(),
        seconds: shared.lease.as_secs(),
        source,
    })
}

/// Tries until there is an agent, or until the link is closed. At the end of the lease it says so and, unless `first`,
/// tries on: an agent that comes late still takes the last reports.
fn connect(shared: &Shared, first: bool) -> io::Result<Arc<UnixStream>> {
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    loop {
        let error = match socket::connect(&shared.socket).and_then(|stream| open(shared, stream)) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let mut state = shared.lock();
        let left = state.gone_since.map_or(shared.lease, |since| shared.lease.saturating_sub(since.elapsed()));
        if left.is_zero() && first || state.closed {
            return Err(error);
        }
        if left.is_zero() && !state.lapsed {
            state.lapsed = true;
            shared.changed.notify_all();
        }
        let wait = backoff.next(0.0);
        let until = Instant::now() + if state.lapsed { wait } else { wait.min(left) };
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || state.closed {
                break;
            }
            state = shared.wait(state, left);
        }
    }
}

/// Says hello on a new connection and hands it to the writer.
fn open(shared: &Shared, stream: UnixStream) -> io::Result<Arc<UnixStream>> {
    stream.set_write_timeout(Some(WRITE_DEADLINE))?;
    let generation = shared.lock().inbox.generation();
    let hello = Report::Hello { pid: process::id(), peer: shared.peer.clone(), generation };
    send(&stream, &hello).map_err(io::Error::other)?;
    let stream = Arc::new(stream);
    let mut state = shared.lock();
    if state.closed {
        return Err(io::ErrorKind::NotConnected.into());
    }
    state.connections += 1;
    state.stream = Some((state.connections, stream.clone()));
    state.gone_since = None;
    state.outbox.connected();
    shared.changed.notify_all();
    Ok(stream)
}

/// Reads orders until the link is closed, connecting again whenever the agent goes.
pub fn read(shared: &Shared, mut stream: Option<Arc<UnixStream>>) {
    loop {
        let Some(open) = stream.take().or_else(|| connect(shared, false).ok()) else { return };
        let end = read_orders(shared, &open);
        let _ = open.shutdown(Shutdown::Both);
        let mut state = shared.lock();
        state.stream = None;
        state.gone_since = Some(Instant::now());
        if state.closed {
            return;
        }
        match end {
            Ok(()) => tracing::warn!("the agent is gone, going on without it"),
            Err(FrameError::Io(error)) => tracing::warn!(%error, "lost the agent, going on without it"),
            Err(error) => {
                tracing::error!(%error, "an order cannot be understood");
                state.broken = Some(error);
            }
        }
        shared.changed.notify_all();
    }
}

fn read_orders(shared: &Shared, stream: &UnixStream) -> Result<(), FrameError> {
    let mut from = stream;
    while let Some(order) = frame::read::<Order>(&mut from)? {
        match take(shared, order) {
            Taken::Yes | Taken::Repeated => {}
            Taken::Refused => tracing::warn!("refused an order: it belongs to an earlier plan"),
            Taken::Full(step) => tracing::warn!(step = step.0, "too many orders to commit: dropped the oldest"),
        }
        shared.changed.notify_all();
    }
    Ok(())
}

/// Takes an order. One that cannot wait for the plan that runs breaks it off, before anybody can take the new one.
fn take(shared: &Shared, order: Order) -> Taken {
    let mut state = shared.lock();
    let breaks = match &order {
        Order::Plan(plan) if plan.at_once => Some(plan.generation),
        _ => None,
    };
    let taken = state.inbox.take(order);
    if let (Taken::Yes, Some(generation), true) = (&taken, breaks, state.inbox.is_superseded()) {
        shared.interrupt.ask(format!("generation {generation} takes the place of this one, which lost a rank"));
    }
    taken
}

/// Writes reports until the link is closed.
pub fn write(shared: &Shared) {
    let mut state = shared.lock();
    while !state.closed || state.stream.is_some() && !state.outbox.is_empty() {
        let Some((connection, stream)) = state.stream.clone() else {
            state = shared.wait(state, IDLE);
            continue;
        };
        match state.outbox.next(Instant::now()) {
            Next::Idle => state = shared.wait(state, IDLE),
            Next::At(time) => state = shared.wait(state, time.saturating_duration_since(Instant::now())),
            Next::Write(number, report) => {
                drop(state);
                let sent = send(&stream, &report);
                state = shared.lock();
                let same = state.stream.as_ref().is_some_and(|(newest, _)| *newest == connection);
                match sent {
                    Ok(()) => state.outbox.written(number, !same),
                    Err(FrameError::Io(error)) => lost(&mut state, &stream, same, &error),
                    Err(error) => {
                        // No connection can carry it: it would be tried for ever.
                        tracing::error!(%error, "a report cannot be sent");
                        state.outbox.written(number, false);
                    }
                }
                shared.changed.notify_all();
            }
        }
    }
}

/// The reader sees the end of a connection that is shut down, and connects again.
fn lost(state: &mut super::State, stream: &UnixStream, same: bool, error: &io::Error) {
    tracing::debug!(%error, "a report could not be written, connecting again");
    let _ = stream.shutdown(Shutdown::Both);
    if same {
        state.stream = None;
        state.gone_since.get_or_insert_with(Instant::now);
    }
}

fn send(mut stream: &UnixStream, report: &Report) -> Result<(), FrameError> {
    use std::io::Write as _;
    stream.write_all(&frame::encode(report)?)?;
    Ok(())
}
