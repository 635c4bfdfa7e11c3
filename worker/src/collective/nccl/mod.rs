//! Collectives of GPU tensors over NCCL, and of CPU tensors over the ring beside it.
//!
//! The ring is the generation's control: joins, fences, barriers, and the lifeline: when a peer dies its connections
//! close, and what waits for it on the GPU is ended at once. `library` is NCCL opened at run time, `error` its words,
//! `communicator` its calls, `streams` the order with torch's work, `pending` and `monitor` what watches operations that
//! were begun, `ras` NCCL's diagnosis. Knows nothing of what is trained.

mod communicator;
mod error;
mod library;
mod monitor;
mod pending;
mod ras;
mod streams;

pub use error::{Failure, NcclError};
pub use library::{LIBRARY_VARIABLE, Library, LibraryError, Version};
pub use streams::{CudaStreams, Passed, Streams};

use super::{Collective, CollectiveError, Deadlines, TcpRing, rows};
use common::ids::{Rank, WorldSize};
use communicator::{Call, Communicator, ID_BYTES, Progress, UniqueId, unique_id};
use cudarc::nccl::sys::ncclDataType_t;
use monitor::Monitor;
use pending::{Operation, Operations};
use std::{
    ffi::{c_int, c_void},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tch::{Device, Kind, Tensor};

/// How long the ranks may take to leave in order.
const LEAVE_DEADLINE: Duration = Duration::from_secs(1);

/// The ranks of a generation, joined by NCCL and by the ring.
pub struct NcclCollective {
    // Ends first: it looks at the rest.
    monitor: Option<Monitor>,
    operations: Arc<Operations>,
    streams: Box<dyn Streams>,
    device: Device,
    deadline: Duration,
    /// Operations go to the stream one after the other.
    launch: Mutex<()>,
}

impl NcclCollective {
    /// Joins the ranks of a ring. Tensors of `device`, which is that of `streams`, go over NCCL.
    ///
    /// Rank 0 makes the id, and it goes round on the ring: the generation that fences the ring fences the communicator
    /// too, and no id is used twice.
    ///
    /// # Errors
    /// When NCCL fails, or a peer is lost or late. The ring is gone then.
    pub fn join(
        ring: TcpRing,
        library: Arc<Library>,
        streams: Box<dyn Streams>,
        device: Device,
        deadlines: Deadlines,
    ) -> Result<Self, CollectiveError> {
        let broken = |reason: String| CollectiveError::Aborted { reason };
        let (rank, world) = (ring.rank(), ring.world());
        let id = share_id(&ring, &library)?;
        streams.enter().map_err(|error| broken(format!("the GPU: {error}")))?;
        let communicator = Communicator::begin(library.clone(), &id, rank.0, world.0)
            .map_err(|source| CollectiveError::Nccl { operation: "join", sequence: 0, source })?;
        let (bell, ear) = UnixStream::pair()
            .and_then(|(bell, ear)| bell.set_nonblocking(true).and(ear.set_nonblocking(true)).map(|()| (bell, ear)))
            .map_err(|error| broken(format!("no pair of sockets: {error}")))?;
        let lifeline = ring.lifeline().map_err(|error| broken(format!("no lifeline: {error}")))?;
        let ring = ring.with_deadline(deadlines.operation);
        let operations = Arc::new(Operations::new(communicator, ring, bell));
        let joining = operations.begin("join", deadlines.join)?;
        let monitor = Monitor::start(operations.clone(), lifeline, ear)
            .map_err(|error| operations.end(broken(format!("no thread for the monitor: {error}"))))?;
        operations.taken(&joining, Progress::Going).map_err(|error| operations.end(error))?;
        operations.done();
        tracing::info!(version = %library.version(), rank = rank.0, world = world.0, "joined by NCCL");
        let launch = Mutex::new(());
        Ok(Self { monitor: Some(monitor), operations, streams, device, deadline: deadlines.operation, launch })
    }

    /// Puts the calls on the communicator's stream, between what torch has put on its own before and what it will after.
    /// `tensors` are all those that the calls touch.
    fn launch(
        &self,
        name: &'static str,
        kind: ncclDataType_t,
        tensors: &[&Tensor],
        calls: &[Call],
    ) -> Result<(), CollectiveError> {
        let _one = self.launch.lock().unwrap_or_else(PoisonError::into_inner);
        let operation = self.operations.begin(name, self.deadline)?;
        if calls.is_empty() {
            self.operations.done();
            return Ok(());
        }
        match self.put(&operation, kind, tensors, calls) {
            Ok(end) => {
                self.operations.launched(operation, end);
                Ok(())
            }
            Err(error) => Err(self.operations.end(error)),
        }
    }

    fn put(
        &self,
        operation: &Operation,
        kind: ncclDataType_t,
        tensors: &[&Tensor],
        calls: &[Call],
    ) -> Result<Box<dyn Passed>, CollectiveError> {
        let torch = |error: tch::TchError| operation.stream_failed(&error);
        self.streams.follow().map_err(torch)?;
        let stream = self.streams.handle().map_err(torch)?;
        // SAFETY: the calls' pointers are of `tensors`, contiguous on this device, with counts from their shapes; `lead`
        // keeps their memory until the stream has passed, and an error ends the communicator.
        let progress = unsafe { self.operations.communicator().submit(calls, kind, stream) };
        self.operations.taken(operation, progress.map_err(|source| operation.failed(source))?)?;
        self.streams.lead(tensors).map_err(torch)
    }

    /// Whether NCCL takes it; the ring takes those of the CPU.
    fn is_mine(&self, tensor: &Tensor) -> bool {
        tensor.device() == self.device
    }

    /// What the ring said; when it failed, everything has.
    fn of_ring<T>(&self, result: Result<T, CollectiveError>) -> Result<T, CollectiveError> {
        match result {
            // A mistake of the caller's, found before anything was done.
            Err(error @ CollectiveError::Unsupported { .. }) => Err(error),
            result => result.map_err(|error| self.operations.end(error)),
        }
    }

    fn own(&self) -> usize {
        self.rank().0 as usize
    }
}

/// Rank 0's id, on every rank. What rank 0 fails with it says itself; the others see it leave.
fn share_id(ring: &TcpRing, library: &Library) -> Result<UniqueId, CollectiveError> {
    let id = match ring.rank() {
        Rank(0) => {
            unique_id(library).map_err(|source| CollectiveError::Nccl { operation: "join", sequence: 0, source })?
        }
        _ => [0; ID_BYTES],
    };
    let mut tensor = Tensor::from_slice(&id);
    ring.broadcast(&mut tensor, Rank(0))?;
    let mut id = [0; ID_BYTES];
    id.copy_from_slice(crate::torch::cpu_bytes(&tensor));
    Ok(id)
}

/// NCCL's name of a type.
fn kind_of(operation: &'static str, tensor: &Tensor) -> Result<ncclDataType_t, CollectiveError> {
    let unsupported = |what: String| Err(CollectiveError::Unsupported { operation, what });
    if !tensor.is_contiguous() {
        return unsupported("a tensor that is not contiguous".to_owned());
    }
    match tensor.kind() {
        Kind::Float => Ok(ncclDataType_t::ncclFloat32),
        Kind::Double => Ok(ncclDataType_t::ncclFloat64),
        Kind::BFloat16 => Ok(ncclDataType_t::ncclBfloat16),
        Kind::Half => Ok(ncclDataType_t::ncclFloat16),
        Kind::Int64 => Ok(ncclDataType_t::ncclInt64),
        Kind::Int => Ok(ncclDataType_t::ncclInt32),
        Kind::Uint8 => Ok(ncclDataType_t::ncclUint8),
        other => unsupported(format!("numbers of type {other:?}")),
    }
}

/// The element `at` of a contiguous tensor; one past the end is allowed.
fn address(tensor: &Tensor, at: usize) -> *mut c_void {
    tensor.data_ptr().cast::<u8>().wrapping_add(at * tensor.kind().elt_size_in_bytes()).cast()
}

/// Whether all ranks have the same number of rows, and one at least.
fn are_even(rows: &[i64]) -> bool {
    rows.first().is_some_and(|first| *first > 0 && rows.iter().all(|n| n == first))
}

impl Collective for NcclCollective {
    fn rank(&self) -> Rank {
        self.operations.ring().rank()
    }

    fn world(&self) -> WorldSize {
        self.operations.ring().world()
    }

    fn all_reduce_sum(&self, tensor: &mut Tensor) -> Result<(), CollectiveError> {
        if !self.is_mine(tensor) {
            return self.of_ring(self.operations.ring().all_reduce_sum(tensor));
        }
        let kind = kind_of("all_reduce", tensor)?;
        let calls = [Call::AllReduce { buffer: address(tensor, 0), count: tensor.numel() }];
        self.launch("all_reduce", kind, &[tensor], if tensor.numel() == 0 { &[] } else { &calls })
    }

    fn all_gather_rows(&self, mine: &Tensor, rows: &[i64]) -> Result<Tensor, CollectiveError> {
        if !self.is_mine(mine) {
            return self.of_ring(self.operations.ring().all_gather_rows(mine, rows));
        }
        let kind = kind_of("all_gather", mine)?;
        let own = self.own();
        rows::check("all_gather", rows, self.world(), rows::count(mine), rows.get(own).copied())?;
        let mut shape = mine.size();
        shape[0] = rows.iter().sum();
        let all = Tensor::empty(&shape, (mine.kind(), self.device));
        let calls: Vec<Call> = if are_even(rows) && mine.numel() > 0 {
            vec![Call::AllGather { send: address(mine, 0), receive: address(&all, 0), count: mine.numel() }]
        } else {
            let stretches = rows::stretches(rows, rows::width(mine));
            let filled = stretches.iter().zip(0..).filter(|(stretch, _)| !stretch.is_empty());
            let call = |(stretch, root): (&std::ops::Range<usize>, c_int)| {
                let receive = address(&all, stretch.start);
                let send = if root as usize == own { address(mine, 0) } else { receive };
                Call::Broadcast { send, receive, count: stretch.len(), root }
            };
            filled.map(call).collect()
        };
        self.launch("all_gather", kind, &[mine, &all], &calls)?;
        Ok(all)
    }

    fn reduce_scatter_rows(&self, tensor: &Tensor, rows: &[i64]) -> Result<Tensor, CollectiveError> {
        if !self.is_mine(tensor) {
            return self.of_ring(self.operations.ring().reduce_scatter_rows(tensor, rows));
        }
        let kind = kind_of("reduce_scatter", tensor)?;
        let own = self.own();
        rows::check("reduce_scatter", rows, self.world(), rows::count(tensor), Some(rows.iter().sum()))?;
        let mut shape = tensor.size();
        shape[0] = rows[own];
        let sum = Tensor::empty(&shape, (tensor.kind(), self.device));
        let calls: Vec<Call> = if are_even(rows) && tensor.numel() > 0 {
            vec![Call::ReduceScatter { send: address(tensor, 0), receive: address(&sum, 0), count: sum.numel() }]
        } else {
            let stretches = rows::stretches(rows, rows::width(tensor));
            let filled = stretches.iter().zip(0..).filter(|(stretch, _)| !stretch.is_empty());
            let call = |(stretch, root): (&std::ops::Range<usize>, c_int)| {
                let send = address(tensor, stretch.start);
                // Where a rank is not the root NCCL does not look at it.
                let receive = if root as usize == own { address(&sum, 0) } else { std::ptr::null_mut() };
                Call::Reduce { send, receive, count: stretch.len(), root }
            };
            filled.map(call).collect()
        };
        self.launch("reduce_scatter", kind, &[tensor, &sum], &calls)?;
        Ok(sum)
    }

    fn broadcast(&self, tensor: &mut Tensor, root: Rank) -> Result<(), CollectiveError> {
        if !self.is_mine(tensor) {
            return self.of_ring(self.operations.ring().broadcast(tensor, root));
        }
        let kind = kind_of("broadcast", tensor)?;
        let (buffer, count) = (address(tensor, 0), tensor.numel());
        let calls = [Call::Broadcast { send: buffer, receive: buffer, count, root: root.0 as c_int }];
        self.launch("broadcast", kind, &[tensor], if count == 0 { &[] } else { &calls })
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        // Own work first: a peer that passes may leave, and nothing here must wait for it then.
        self.operations.finish()?;
        self.of_ring(self.operations.ring().barrier())
    }

    fn finish(&self) -> Result<(), CollectiveError> {
        self.operations.finish()
    }

    fn lost(&self) -> Result<Option<Tensor>, CollectiveError> {
        // Operations go over the stream one after the other, and an aborted one takes those behind it along: so this sum
        // is whole only if all before it are.
        let mut present = Tensor::ones([], (Kind::Float, self.device));
        self.all_reduce_sum(&mut present)?;
        Ok(Some(present.ne(f64::from(self.world().0)).to_kind(Kind::Float)))
    }

    fn abort(&self, reason: &str) {
        self.operations.fail(CollectiveError::Aborted { reason: reason.to_owned() });
    }
}

impl Drop for NcclCollective {
    fn drop(&mut self) {
        self.operations.check();
        if self.operations.is_at_rest() {
            drop(self.monitor.take());
            self.operations.ring().leave();
            self.operations.communicator().close(LEAVE_DEADLINE);
        } else {
            self.abort("this rank left");
        }
    }
}

#[cfg(test)]
mod tests;
