//! A ring of TCP connections: each rank sends to the next and receives from the one before. The engine of machines
//! without a GPU, and of tests.
//!
//! `join` brings the ranks together, `wire` is what goes over a connection, `transfer` moves bytes both ways at once,
//! `reduce` adds them up, `lifeline` watches the connections between operations; this file is the schedule (Patarasuk and
//! Yuan, "Bandwidth optimal all-reduce", 2009).

mod join;
mod lifeline;
mod reduce;
mod transfer;
mod wire;

pub(super) use lifeline::Lifeline;

use super::{Collective, CollectiveError, Identity, rows};
use crate::torch::{cpu_bytes, cpu_bytes_mut};
use common::ids::{Generation, Rank, WorldSize};
use std::{
    net::{Shutdown, TcpListener, TcpStream},
    ops::Range,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};
use tch::{Device, Tensor};
use transfer::{Links, Operation};
use wire::Op;

/// The ranks of a generation, joined by TCP.
#[derive(Debug)]
pub struct TcpRing {
    rank: Rank,
    world: WorldSize,
    generation: Generation,
    deadline: Duration,
    /// Kept apart from `links`, so that `abort` reaches the sockets while an operation holds those.
    sockets: [TcpStream; 2],
    aborted: Arc<OnceLock<String>>,
    links: Mutex<Links>,
}

impl TcpRing {
    /// Joins the peers. See [`super::join`].
    ///
    /// # Errors
    /// When they have not come together in time.
    pub fn join(
        listener: &TcpListener,
        identity: &Identity,
        operation: Duration,
        join: Duration,
    ) -> Result<Self, CollectiveError> {
        Self::join_unless(listener, identity, operation, join, &|| false)
    }

    /// As [`TcpRing::join`]; given up soon after `in_vain` says so.
    ///
    /// # Errors
    /// As [`TcpRing::join`].
    pub fn join_unless(
        listener: &TcpListener,
        identity: &Identity,
        operation: Duration,
        join: Duration,
        in_vain: &(dyn Fn() -> bool + Sync),
    ) -> Result<Self, CollectiveError> {
        let world = u32::try_from(identity.peers.len()).expect("a generation has fewer than 2^32 ranks");
        let fail = |reason: String| CollectiveError::Join { generation: identity.generation, reason };
        let (previous, next) = join::neighbours(listener, identity, join, in_vain).map_err(fail)?;
        let clone = |stream: &TcpStream| stream.try_clone().map_err(|error| fail(error.to_string()));
        let sockets = [clone(&previous)?, clone(&next)?];
        let aborted = Arc::new(OnceLock::new());
        let links = Links::new(previous, next, identity.rank, WorldSize(world), aborted.clone());
        Ok(Self {
            rank: identity.rank,
            world: WorldSize(world),
            generation: identity.generation,
            deadline: operation,
            sockets,
            aborted,
            links: Mutex::new(links),
        })
    }

    /// Runs one operation: numbered, timed, and the end of the ring if it fails.
    fn run<T>(
        &self,
        op: Op,
        body: impl FnOnce(&mut Links, &Operation) -> Result<T, CollectiveError>,
    ) -> Result<T, CollectiveError> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = self.aborted.get() {
            return Err(CollectiveError::Aborted { reason: reason.clone() });
        }
        let operation = Operation {
            op,
            generation: self.generation,
            sequence: links.next_sequence(),
            deadline: self.deadline,
            end: Instant::now() + self.deadline,
        };
        let result = body(&mut links, &operation);
        if let Err(error) = &result {
            links.say_abort(&operation, &error.to_string());
            drop(links);
            self.abort(&error.to_string());
        }
        result
    }

    /// The rank `back` places before this one in the ring.
    fn before(&self, back: usize) -> usize {
        let world = self.world.0 as usize;
        (self.rank.0 as usize + world - back % world) % world
    }

    /// Adds up: afterwards rank r's stretch `blocks[r]` of the buffer is the sum over all ranks.
    fn reduce_blocks(
        &self,
        links: &mut Links,
        operation: &Operation,
        buffer: &mut [u8],
        blocks: &[Range<usize>],
        add: reduce::Add,
    ) -> Result<(), CollectiveError> {
        for step in 0..blocks.len() - 1 {
            let (send, receive) = (blocks[self.before(step + 1)].clone(), blocks[self.before(step + 2)].clone());
            links.exchange_add(operation, buffer, send, receive, add)?;
        }
        Ok(())
    }

    /// Spreads: afterwards every rank has every rank's own stretch `blocks[r]`.
    fn gather_blocks(
        &self,
        links: &mut Links,
        operation: &Operation,
        buffer: &mut [u8],
        blocks: &[Range<usize>],
    ) -> Result<(), CollectiveError> {
        for step in 0..blocks.len() - 1 {
            let (send, receive) = (blocks[self.before(step)].clone(), blocks[self.before(step + 1)].clone());
            links.exchange(operation, buffer, send, receive)?;
        }
        Ok(())
    }

    fn supported(operation: &'static str, tensor: &Tensor) -> Result<(), CollectiveError> {
        if tensor.device() == Device::Cpu && tensor.is_contiguous() {
            return Ok(());
        }
        let what = format!("a tensor on {:?}, contiguous: {}", tensor.device(), tensor.is_contiguous());
        Err(CollectiveError::Unsupported { operation, what })
    }

    /// The same ring with another deadline for each operation.
    pub(super) fn with_deadline(mut self, operation: Duration) -> Self {
        self.deadline = operation;
        self
    }

    /// What notices that a neighbour is gone while no operation runs.
    ///
    /// # Errors
    /// When the system has no more descriptors.
    pub(super) fn lifeline(&self) -> std::io::Result<Lifeline> {
        let world = self.world.0;
        let ranks = [(self.rank.0 + world - 1) % world, (self.rank.0 + 1) % world].map(Rank);
        Lifeline::new(ranks, &self.sockets)
    }

    /// Closes the connections; peers that wait for nothing do not mind.
    pub(super) fn leave(&self) {
        for socket in &self.sockets {
            // The peer may have closed it already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn row_bytes(tensor: &Tensor) -> usize {
    rows::width(tensor) * tensor.kind().elt_size_in_bytes()
}

impl Collective for TcpRing {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn world(&self) -> WorldSize {
        self.world
    }

    fn all_reduce_sum(&self, tensor: &mut Tensor) -> Result<(), CollectiveError> {
        Self::supported("all_reduce", tensor)?;
        let add = reduce::add_of(tensor.kind(), "all_reduce")?;
        let (elements, size) = (tensor.numel(), tensor.kind().elt_size_in_bytes());
        let world = self.world.0 as usize;
        let cut = |rank: usize| elements * rank / world * size;
        let blocks: Vec<Range<usize>> = (0..world).map(|rank| cut(rank)..cut(rank + 1)).collect();
        let buffer = cpu_bytes_mut(tensor);
        self.run(Op::AllReduce, |links, operation| {
            self.reduce_blocks(links, operation, buffer, &blocks, add)?;
            self.gather_blocks(links, operation, buffer, &blocks)
        })
    }

    fn all_gather_rows(&self, mine: &Tensor, rows: &[i64]) -> Result<Tensor, CollectiveError> {
        Self::supported("all_gather", mine)?;
        let own = rows.get(self.rank.0 as usize).copied();
        rows::check("all_gather", rows, self.world, rows::count(mine), own)?;
        let mut shape = mine.size();
        shape[0] = rows.iter().sum();
        let mut all = Tensor::empty(&shape, (mine.kind(), Device::Cpu));
        let blocks = rows::stretches(rows, row_bytes(mine));
        let buffer = cpu_bytes_mut(&mut all);
        buffer[blocks[self.rank.0 as usize].clone()].copy_from_slice(cpu_bytes(mine));
        self.run(Op::AllGather, |links, operation| self.gather_blocks(links, operation, buffer, &blocks))?;
        Ok(all)
    }

    fn reduce_scatter_rows(&self, tensor: &Tensor, rows: &[i64]) -> Result<Tensor, CollectiveError> {
        Self::supported("reduce_scatter", tensor)?;
        let add = reduce::add_of(tensor.kind(), "reduce_scatter")?;
        rows::check("reduce_scatter", rows, self.world, rows::count(tensor), Some(rows.iter().sum()))?;
        let mut sum = tensor.copy();
        let blocks = rows::stretches(rows, row_bytes(tensor));
        let buffer = cpu_bytes_mut(&mut sum);
        self.run(Op::ReduceScatter, |links, operation| self.reduce_blocks(links, operation, buffer, &blocks, add))?;
        let rank = self.rank.0 as usize;
        Ok(sum.narrow(0, rows[..rank].iter().sum(), rows[rank]).contiguous())
    }

    fn broadcast(&self, tensor: &mut Tensor, root: Rank) -> Result<(), CollectiveError> {
        Self::supported("broadcast", tensor)?;
        let (receives, sends) = (self.rank != root, (self.rank.0 + 1) % self.world.0 != root.0);
        let buffer = cpu_bytes_mut(tensor);
        self.run(Op::Broadcast, |links, operation| links.relay(operation, buffer, receives, sends))
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        let mut marks = vec![0u8; self.world.0 as usize];
        let blocks: Vec<Range<usize>> = (0..marks.len()).map(|rank| rank..rank + 1).collect();
        self.run(Op::Barrier, |links, operation| self.gather_blocks(links, operation, &mut marks, &blocks))
    }

    fn abort(&self, reason: &str) {
        let _ = self.aborted.set(reason.to_owned());
        self.leave();
    }
}

#[cfg(test)]
mod tests;
