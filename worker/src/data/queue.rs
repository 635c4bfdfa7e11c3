//! The loader's queue: batches in the order of their requests, a bounded number at a time, cut into chunks for threads.

use super::{Batch, BatchRequest, DataError, ReplacedSample, SampleRequest};
use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
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
}

/// A decoded chunk.
#[derive(Debug, Default)]
pub struct Part {
    /// The samples used.
    pub samples: Vec<SampleRequest>,
    /// Their pixels.
    pub pixels: Vec<u8>,
    /// Those that were replaced.
    pub skipped: Vec<ReplacedSample>,
}

struct InFlight {
    request: BatchRequest,
    given: usize,
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
                return Some(Chunk { batch: first + place as u64, part, tag: batch.request.tag, samples });
            }
            if state.exhausted {
                return None;
            }
            if state.batches.len() < self.capacity {
                match catch_unwind(AssertUnwindSafe(|| state.requests.next())) {
                    Ok(Some(request)) => state.batches.push_back(InFlight::new(request, self.image_size)),
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
                let joined = join(tag, parts, self.image_size);
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

impl InFlight {
    fn new(request: BatchRequest, image_size: u32) -> Self {
        let chunks = request.samples.len().div_ceil(CHUNK);
        let result = (chunks == 0).then(|| Ok(join(request.tag, Vec::new(), image_size)));
        Self { request, given: 0, parts: (0..chunks).map(|_| None).collect(), missing: chunks, result }
    }
}

fn join(tag: u64, parts: Vec<Option<Part>>, image_size: u32) -> Batch {
    let mut batch = Batch { tag, samples: Vec::new(), pixels: Vec::new(), image_size, skipped: Vec::new() };
    batch.pixels.reserve_exact(parts.iter().flatten().map(|part| part.pixels.len()).sum());
    for part in parts.into_iter().flatten() {
        batch.samples.extend(part.samples);
        batch.pixels.extend(part.pixels);
        batch.skipped.extend(part.skipped);
    }
    batch
}
