//! The loader's queue: batches in the order of their requests, a bounded number at a time, cut into chunks for threads.

use super::{
    Batch, BatchRequest, BrokenSample, SampleRequest,
    slab::{Shelf, Slab},
};
use crate::data::DataError;
use bytes::BytesMut;
use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Samples that a thread decodes at a time.
const CHUNK: usize = 4;

/// A part of a batch, to be decoded.
#[derive(Debug)]
pub struct Chunk {
    batch: u64,
    part: usize,
    /// The batch's tag.
    pub tag: u64,
    /// The samples.
    pub samples: Vec<SampleRequest>,
    /// Where their pixels go: this part of the batch's memory.
    pub pixels: BytesMut,
}

/// A decoded chunk.
#[derive(Debug, Default)]
pub struct Part {
    /// The samples used.
    pub samples: Vec<SampleRequest>,
    /// Their pixels, in the memory that came with the chunk.
    pub pixels: BytesMut,
    /// Those that are broken.
    pub broken: Vec<BrokenSample>,
}

struct InFlight {
    request: BatchRequest,
    given: usize,
    /// The batch's memory that is not given out yet.
    memory: BytesMut,
    parts: Vec<Option<Part>>,
    missing: usize,
    result: Option<Result<Batch, DataError>>,
}

struct State {
    requests: Box<dyn Iterator<Item = BatchRequest> + Send>,
    exhausted: bool,
    stopped: bool,
    failed: Option<DataError>,
    batches: VecDeque<InFlight>,
    /// The number of the first of `batches`.
    first: u64,
}

/// What the threads and the consumer share.
pub struct Queue {
    state: Mutex<State>,
    /// A thread may find work, or must end.
    work: Condvar,
    /// The consumer may find its batch.
    ready: Condvar,
    capacity: usize,
    image_size: u32,
    shelf: Arc<Shelf>,
}

impl Queue {
    /// Of at most `capacity` batches, decoded or not.
    pub fn new(requests: Box<dyn Iterator<Item = BatchRequest> + Send>, capacity: usize, image_size: u32) -> Self {
        let state =
            State { requests, exhausted: false, stopped: false, failed: None, batches: VecDeque::new(), first: 0 };
        Self {
            state: Mutex::new(state),
            work: Condvar::new(),
            ready: Condvar::new(),
            capacity: capacity.max(1),
            image_size,
            // The consumer holds a batch or two while others are made.
            shelf: Shelf::new(capacity.max(1) + 2),
        }
    }

    /// The next chunk to decode; `None` when there is none left or the loader ends. Waits while the consumer has all
    /// the batches that it may have ahead; [`Queue::stop`] ends the wait.
    pub fn take(&self) -> Option<Chunk> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            let first = state.first;
            let open = state.batches.iter_mut().enumerate().find(|(_, batch)| batch.given < batch.parts.len());
            if let Some((place, batch)) = open {
                let part = batch.given;
                batch.given += 1;
                let end = (CHUNK * (part + 1)).min(batch.request.samples.len());
                let samples = batch.request.samples[CHUNK * part..end].to_vec();
                let pixels = batch.memory.split_to(samples.len() * image_bytes(self.image_size));
                return Some(Chunk { batch: first + place as u64, part, tag: batch.request.tag, samples, pixels });
            }
            if state.exhausted {
                return None;
            }
            if state.batches.len() < self.capacity {
                match catch_unwind(AssertUnwindSafe(|| state.requests.next())) {
                    Ok(Some(request)) => state.batches.push_back(self.in_flight(request)),
                    Ok(None) => state.exhausted = true,
                    Err(panic) => state.fail(panic),
                }
                self.work.notify_all();
                self.ready.notify_all();
            } else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Hands in a decoded chunk. The thread that hands in a batch's last one puts it together, outside of the lock.
    pub fn put(&self, chunk: &Chunk, part: Result<Part, DataError>) {
        let mut state = self.lock();
        let Some(batch) = state.in_flight(chunk.batch) else { return };
        match part {
            Err(error) => batch.result = Some(Err(error)),
            Ok(part) => {
                batch.parts[chunk.part] = Some(part);
                batch.missing -= 1;
                if batch.missing > 0 || batch.result.is_some() {
                    return;
                }
                let (tag, parts) = (batch.request.tag, std::mem::take(&mut batch.parts));
                batch.given = 0;
                drop(state);
                let joined = self.join(tag, parts);
                state = self.lock();
                if let Some(batch) = state.in_flight(chunk.batch) {
                    batch.result = Some(Ok(joined));
                }
            }
        }
        drop(state);
        self.ready.notify_all();
    }

    /// The next batch, or the error in its place; `None` after the last batch or an error.
    pub fn next(&self, patience: Duration) -> Option<Result<Batch, DataError>> {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        let result = loop {
            if let Some(error) = state.failed.take() {
                break Err(error);
            }
            if state.stopped {
                return None;
            }
            if let Some(result) = state.batches.front_mut().and_then(|batch| batch.result.take()) {
                state.batches.pop_front();
                state.first += 1;
                break result;
            }
            if state.exhausted && state.batches.is_empty() {
                return None;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break Err(DataError::Stalled { seconds: patience.as_secs() });
            }
            state = self.ready.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        state.stopped |= result.is_err();
        drop(state);
        self.work.notify_all();
        Some(result)
    }

    /// Ends all threads; the consumer gets nothing more.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.work.notify_all();
        self.ready.notify_all();
    }

    /// Ends all threads; the consumer gets what a thread panicked with as an error, and then nothing more.
    pub fn fail(&self, panic: Box<dyn Any + Send>) {
        self.lock().fail(panic);
        self.work.notify_all();
        self.ready.notify_all();
    }

    /// Whether threads are to end.
    pub fn stopped(&self) -> bool {
        self.lock().stopped
    }

    fn in_flight(&self, request: BatchRequest) -> InFlight {
        let chunks = request.samples.len().div_ceil(CHUNK);
        let memory = self.shelf.take(request.samples.len() * image_bytes(self.image_size));
        let result = (chunks == 0).then(|| Ok(self.join(request.tag, Vec::new())));
        InFlight { request, given: 0, memory, parts: (0..chunks).map(|_| None).collect(), missing: chunks, result }
    }

    fn join(&self, tag: u64, parts: Vec<Option<Part>>) -> Batch {
        let (mut samples, mut broken, mut memory) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts.into_iter().flatten() {
            samples.extend(part.samples);
            broken.extend(part.broken);
            memory.push(part.pixels);
        }
        let pixels = Slab::join(memory.into_iter(), &self.shelf);
        Batch { tag, samples, pixels, image_size: self.image_size, broken }
    }

    /// No code under the lock panics but that of the requests, which is caught.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fail(&mut self, panic: Box<dyn Any + Send>) {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        self.failed.get_or_insert(DataError::Thread { reason: text.unwrap_or_else(|| "it panicked".to_owned()) });
        self.stopped = true;
    }

    /// A batch by number; `None` when the consumer has it already.
    fn in_flight(&mut self, batch: u64) -> Option<&mut InFlight> {
        self.batches.get_mut(usize::try_from(batch.checked_sub(self.first)?).ok()?)
    }
}

/// Bytes of an image's pixels.
fn image_bytes(side: u32) -> usize {
    3 * side as usize * side as usize
}
