//! Moves bytes to the next rank and from the one before at the same time, on one thread, with a deadline.

use super::{
    reduce::Add,
    wire::{HEADER_BYTES, Header, MAX_REASON_BYTES, Op},
};
use crate::collective::CollectiveError;
use common::ids::{Generation, Rank, WorldSize};
use rustix::event::{PollFd, PollFlags, poll};
use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    ops::Range,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

/// So many bytes are received before they are added: they stay in the cache. A multiple of every number's size.
const PIECE: usize = 256 << 10;

/// One operation of the ring.
#[derive(Debug)]
pub(super) struct Operation {
    pub op: Op,
    pub generation: Generation,
    pub sequence: u64,
    pub deadline: Duration,
    pub end: Instant,
}

impl Operation {
    fn header(&self, bytes: usize) -> Header {
        Header { op: self.op, generation: self.generation, sequence: self.sequence, bytes: bytes as u64 }
    }
}

/// The two connections of a rank.
#[derive(Debug)]
pub(super) struct Links {
    previous: TcpStream,
    next: TcpStream,
    previous_rank: Rank,
    next_rank: Rank,
    sequence: u64,
    aborted: Arc<OnceLock<String>>,
    /// Aligned for every number.
    piece: Vec<u64>,
}

/// A header and then a stretch of bytes, on its way out.
struct Outgoing {
    header: [u8; HEADER_BYTES],
    sent: usize,
    length: usize,
}

impl Outgoing {
    fn new(header: Header) -> Self {
        Self { header: header.encode(), sent: 0, length: header.bytes as usize }
    }

    fn done(&self) -> bool {
        self.sent == HEADER_BYTES + self.length
    }

    /// Sends what the connection takes of the header and of `ready`, the bytes that there are so far.
    fn push(&mut self, stream: &mut TcpStream, ready: &[u8]) -> std::io::Result<()> {
        while self.sent < HEADER_BYTES + ready.len() {
            let part =
                if self.sent < HEADER_BYTES { &self.header[self.sent..] } else { &ready[self.sent - HEADER_BYTES..] };
            match stream.write(part) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A header and then a stretch of bytes, on its way in.
struct Incoming {
    header: [u8; HEADER_BYTES],
    received: usize,
    length: usize,
}

impl Incoming {
    fn new(length: usize) -> Self {
        Self { header: [0; HEADER_BYTES], received: 0, length }
    }

    fn done(&self) -> bool {
        self.received == HEADER_BYTES + self.length
    }

    /// Bytes of the stretch so far.
    fn bytes(&self) -> usize {
        self.received.saturating_sub(HEADER_BYTES)
    }

    /// One read into the header, or into the free part of the stretch that `place` is; true when something came.
    fn pull(&mut self, stream: &mut TcpStream, place: &mut [u8]) -> std::io::Result<bool> {
        let part = if self.received < HEADER_BYTES { &mut self.header[self.received..] } else { place };
        loop {
            match stream.read(part) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.received += n;
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Links {
    pub(super) fn new(
        previous: TcpStream,
        next: TcpStream,
        rank: Rank,
        world: WorldSize,
        aborted: Arc<OnceLock<String>>,
    ) -> Self {
        Self {
            previous,
            next,
            previous_rank: Rank((rank.0 + world.0 - 1) % world.0),
            next_rank: Rank((rank.0 + 1) % world.0),
            sequence: 0,
            aborted,
            piece: vec![0; PIECE / 8],
        }
    }

    pub(super) fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence - 1
    }

    /// Sends one stretch of the buffer and receives another.
    pub(super) fn exchange(
        &mut self,
        operation: &Operation,
        buffer: &mut [u8],
        send: Range<usize>,
        receive: Range<usize>,
    ) -> Result<(), CollectiveError> {
        let mut out = Outgoing::new(operation.header(send.len()));
        let mut incoming = Incoming::new(receive.len());
        loop {
            self.send(operation, &mut out, &buffer[send.clone()])?;
            let free = receive.start + incoming.bytes()..receive.end;
            let moved = self.receive(operation, &mut incoming, &mut buffer[free])?;
            if out.done() && incoming.done() {
                return Ok(());
            }
            if !moved {
                self.wait(operation, !out.done(), !incoming.done())?;
            }
        }
    }

    /// Sends one stretch of the buffer and adds what is received to another.
    pub(super) fn exchange_add(
        &mut self,
        operation: &Operation,
        buffer: &mut [u8],
        send: Range<usize>,
        receive: Range<usize>,
        add: Add,
    ) -> Result<(), CollectiveError> {
        let mut out = Outgoing::new(operation.header(send.len()));
        let mut incoming = Incoming::new(receive.len());
        let mut piece = std::mem::take(&mut self.piece);
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut piece);
        let mut added = 0;
        let result = loop {
            if let Err(error) = self.send(operation, &mut out, &buffer[send.clone()]) {
                break Err(error);
            }
            let filled = incoming.bytes() - added;
            let whole = PIECE.min(receive.len() - added);
            let moved = match self.receive(operation, &mut incoming, &mut bytes[filled..whole]) {
                Ok(moved) => moved,
                Err(error) => break Err(error),
            };
            if incoming.bytes() - added == whole && whole > 0 {
                let start = receive.start + added;
                add(&mut buffer[start..start + whole], &bytes[..whole]);
                added += whole;
            }
            if out.done() && incoming.done() {
                break Ok(());
            }
            if !moved && let Err(error) = self.wait(operation, !out.done(), !incoming.done()) {
                break Err(error);
            }
        };
        self.piece = piece;
        result
    }

    /// Receives the whole buffer, sends it on as it comes, or both.
    pub(super) fn relay(
        &mut self,
        operation: &Operation,
        buffer: &mut [u8],
        receives: bool,
        sends: bool,
    ) -> Result<(), CollectiveError> {
        let mut out = Outgoing::new(operation.header(buffer.len()));
        let mut incoming = Incoming::new(buffer.len());
        loop {
            let ready = if receives { incoming.bytes() } else { buffer.len() };
            if sends {
                self.send(operation, &mut out, &buffer[..ready])?;
            }
            let mut moved = false;
            if receives {
                let free = incoming.bytes();
                moved = self.receive(operation, &mut incoming, &mut buffer[free..])?;
            }
            let (sent, received) = (!sends || out.done(), !receives || incoming.done());
            if sent && received {
                return Ok(());
            }
            let may_send = !sent && out.sent < HEADER_BYTES + ready;
            if !moved {
                self.wait(operation, may_send, !received)?;
            }
        }
    }

    fn send(&mut self, operation: &Operation, out: &mut Outgoing, ready: &[u8]) -> Result<(), CollectiveError> {
        out.push(&mut self.next, ready).map_err(|error| self.lost(operation, self.next_rank, &error))
    }

    fn receive(
        &mut self,
        operation: &Operation,
        incoming: &mut Incoming,
        place: &mut [u8],
    ) -> Result<bool, CollectiveError> {
        if incoming.done() {
            return Ok(false);
        }
        let before = incoming.received;
        let moved = incoming
            .pull(&mut self.previous, place)
            .map_err(|error| self.lost(operation, self.previous_rank, &error))?;
        if before < HEADER_BYTES && incoming.received >= HEADER_BYTES {
            self.check(operation, incoming)?;
        }
        Ok(moved)
    }

    fn check(&mut self, operation: &Operation, incoming: &Incoming) -> Result<(), CollectiveError> {
        let due = operation.header(incoming.length);
        let mismatch = |reason| CollectiveError::Mismatch {
            peer: self.previous_rank,
            operation: operation.op.name(),
            sequence: operation.sequence,
            reason,
        };
        let header =
            Header::decode(&incoming.header).ok_or_else(|| mismatch("what it sends is no header".to_owned()))?;
        if header.op == Op::Abort && header.generation == operation.generation {
            return Err(CollectiveError::Aborted { reason: self.read_reason(header.bytes) });
        }
        if header == due { Ok(()) } else { Err(mismatch(header.difference(&due))) }
    }

    /// The reason that follows an abort's header.
    fn read_reason(&mut self, bytes: u64) -> String {
        let mut reason = Vec::new();
        let short = self
            .previous
            .set_nonblocking(false)
            .and_then(|()| self.previous.set_read_timeout(Some(Duration::from_secs(1))));
        if short.is_ok() {
            // What was read until an error is all there is to say.
            let _ = (&self.previous).take(bytes.min(MAX_REASON_BYTES)).read_to_end(&mut reason);
        }
        format!("rank {} says: {}", self.previous_rank, String::from_utf8_lossy(&reason))
    }

    /// Tells the next rank why this one ends, if it listens.
    pub(super) fn say_abort(&mut self, operation: &Operation, reason: &str) {
        let text = &reason.as_bytes()[..reason.len().min(MAX_REASON_BYTES as usize)];
        let header = Header { op: Op::Abort, ..operation.header(text.len()) };
        // Between two stretches the next rank understands it; within one it sees the connection end instead.
        let _ = self.next.write_all(&[&header.encode(), text].concat());
    }

    fn wait(&self, operation: &Operation, send: bool, receive: bool) -> Result<(), CollectiveError> {
        let left = operation.end.saturating_duration_since(Instant::now());
        let peer = if receive { self.previous_rank } else { self.next_rank };
        if left.is_zero() {
            return Err(CollectiveError::Deadline {
                peer,
                operation: operation.op.name(),
                sequence: operation.sequence,
                deadline: operation.deadline,
            });
        }
        let mut descriptors = Vec::with_capacity(2);
        if send {
            descriptors.push(PollFd::new(&self.next, PollFlags::OUT));
        }
        if receive {
            descriptors.push(PollFd::new(&self.previous, PollFlags::IN));
        }
        let timeout = left.try_into().expect("a deadline of an operation fits into a timespec");
        match poll(&mut descriptors, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(self.lost(operation, peer, &error.into())),
        }
    }

    fn lost(&self, operation: &Operation, peer: Rank, error: &std::io::Error) -> CollectiveError {
        if let Some(reason) = self.aborted.get() {
            return CollectiveError::Aborted { reason: reason.clone() };
        }
        let reason = match error.kind() {
            ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
            _ => error.to_string(),
        };
        CollectiveError::PeerLost { peer, operation: operation.op.name(), sequence: operation.sequence, reason }
    }
}
