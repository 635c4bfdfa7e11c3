//! Blocks of object storage, fetched before the samples that need them are decoded.
//!
//! A thread looks at the requests ahead of those that decode, and asks storage for the blocks that their samples lie in:
//! images, and what is read beside them. With a block shuffle these are the blocks of the next window while the present
//! one is consumed, so that nobody waits at its edge. How far it looks is bounded by bytes: the blocks of all samples
//! between the training and the last one looked at are no more than `Limits::ahead`, which is less than what is kept; so
//! nothing is pushed out before it was used. What no sample in sight needs any more is let go first.

use super::{BatchRequest, LoaderConfig, SampleRequest};
use crate::{
    data::DataError,
    storage::{Block, Storage},
};
use std::{
    any::Any,
    collections::{HashMap, HashSet, VecDeque},
    fmt::Debug,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

/// Samples that are looked at ahead, whatever they take: 24 bytes each are held.
const SAMPLES: usize = 1 << 17;
/// Batches that the consumer may still read something of when it has them: the one that it works on, and the next.
const WITH_CONSUMER: usize = 2;

/// What is read of a sample besides its image, such as its text vector.
pub trait Beside: Debug + Send + Sync {
    /// What it is read through; absent when none of it lies in object storage.
    fn storage(&self) -> Option<Arc<Storage>>;

    /// Hands on the blocks of object storage that it lies in; none when it lies in files.
    ///
    /// # Errors
    /// When it is not known where it lies.
    fn blocks(&self, sample: SampleRequest, each: &mut dyn FnMut(Block)) -> Result<(), DataError>;
}

/// The requests of a loader, looked at before they are taken.
pub struct Ahead {
    state: Mutex<State>,
    /// A batch was delivered, a block came, or it is to end.
    changed: Condvar,
    storage: Arc<Storage>,
}

struct State {
    requests: Box<dyn Iterator<Item = BatchRequest> + Send>,
    /// Looked at, and not taken yet.
    seen: VecDeque<BatchRequest>,
    seen_samples: usize,
    /// The blocks of every batch that was looked at or taken, and not let go, in the batches' order.
    wanted: VecDeque<Vec<Block>>,
    /// The number of the first of them.
    first: u64,
    delivered: u64,
    /// How many of these batches want a block.
    uses: HashMap<Block, u32>,
    fetching: usize,
    /// The requests have ended, with this panic or without.
    exhausted: bool,
    panicked: Option<Box<dyn Any + Send>>,
    stopped: bool,
}

impl Ahead {
    /// Of a loader's requests; absent when none of its data lies in object storage, or nothing of it is kept.
    pub fn of(config: &LoaderConfig) -> Option<Arc<Storage>> {
        let images = config.datasets.iter().find_map(|data| data.object_storage());
        let storage = images.or_else(|| config.beside.as_ref()?.storage());
        storage.filter(|storage| storage.ahead() >= storage.block())
    }

    /// Nothing is looked at yet.
    pub fn new(storage: Arc<Storage>, requests: Box<dyn Iterator<Item = BatchRequest> + Send>) -> Arc<Self> {
        let state = State {
            requests,
            seen: VecDeque::new(),
            seen_samples: 0,
            wanted: VecDeque::new(),
            first: 0,
            delivered: 0,
            uses: HashMap::new(),
            fetching: 0,
            exhausted: false,
            panicked: None,
            stopped: false,
        };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new(), storage })
    }

    /// Looks ahead until the requests or the loader end. Where a sample lies that cannot be said, it looks no further: who reads the
    /// sample is told why.
    pub fn run(self: &Arc<Self>, config: &LoaderConfig) {
        while let Some((number, request)) = self.look() {
            let (mut blocks, mut known) = (Vec::new(), HashSet::new());
            let mut each = |block: Block| {
                if known.insert(block.clone()) {
                    blocks.push(block);
                }
            };
            for sample in &request.samples {
                if let Err(error) = blocks_of(config, *sample, &mut each) {
                    tracing::debug!(%error, "no blocks are fetched ahead any more");
                    return;
                }
            }
            for block in blocks {
                if !self.want(number, block) {
                    return;
                }
            }
        }
    }

    /// A batch has come to the consumer; the blocks of those before it that no other wants are let go.
    pub fn delivered(&self) {
        let mut state = self.lock();
        state.delivered += 1;
        let mut free = Vec::new();
        while state.first + (WITH_CONSUMER as u64) < state.delivered {
            let blocks = state.wanted.pop_front().unwrap_or_default();
            state.first += 1;
            for block in blocks {
                let left = state.uses.get_mut(&block).expect("a block is wanted as often as batches want it");
                *left -= 1;
                if *left == 0 {
                    state.uses.remove(&block);
                    free.push(block);
                }
            }
        }
        drop(state);
        free.iter().for_each(|block| self.storage.let_go(block));
        self.changed.notify_all();
    }

    /// Ends it.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// The next request to look at, and its number, as soon as that much may be ahead.
    fn look(&self) -> Option<(u64, BatchRequest)> {
        let full = |state: &mut State| {
            !state.stopped
                && (state.bytes(&self.storage) >= self.storage.ahead()
                    || state.seen_samples >= SAMPLES
                    || state.fetching >= self.storage.requests_ahead())
        };
        let mut state = self.changed.wait_while(self.lock(), full).unwrap_or_else(PoisonError::into_inner);
        if state.stopped {
            return None;
        }
        let request = state.pull()?;
        state.seen_samples += request.samples.len();
        state.seen.push_back(request.clone());
        Some((state.first + state.wanted.len() as u64 - 1, request))
    }

    /// Notes that a batch wants a block, and has it fetched if it is the first; false when it is to end.
    fn want(self: &Arc<Self>, number: u64, block: Block) -> bool {
        // A batch that is through wants nothing any more; those that decode do not wait for this.
        let full = |state: &mut State| {
            let new = !state.uses.contains_key(&block);
            let many =
                state.fetching >= self.storage.requests_ahead() || state.bytes(&self.storage) >= self.storage.ahead();
            new && many && number >= state.first && !state.stopped
        };
        let mut state = self.changed.wait_while(self.lock(), full).unwrap_or_else(PoisonError::into_inner);
        let Some(at) = number.checked_sub(state.first).map(|at| at as usize) else { return !state.stopped };
        state.wanted[at].push(block.clone());
        let uses = state.uses.entry(block.clone()).or_default();
        *uses += 1;
        if *uses == 1 && !state.stopped {
            state.fetching += 1;
            drop(state);
            self.storage.fetch_ahead(&block, Fetching(self.clone()));
            return true;
        }
        !state.stopped
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request for a block. Dropped, it has ended.
struct Fetching(Arc<Ahead>);

impl Drop for Fetching {
    fn drop(&mut self) {
        self.0.lock().fetching -= 1;
        self.0.changed.notify_all();
    }
}

impl State {
    fn bytes(&self, storage: &Storage) -> u64 {
        self.uses.len() as u64 * storage.block()
    }

    /// The next of the requests, to be looked at or taken. A panic of theirs is kept for who takes it.
    fn pull(&mut self) -> Option<BatchRequest> {
        if self.exhausted {
            return None;
        }
        match catch_unwind(AssertUnwindSafe(|| self.requests.next())) {
            Ok(Some(request)) => {
                self.wanted.push_back(Vec::new());
                return Some(request);
            }
            Ok(None) => {}
            Err(panic) => self.panicked = Some(panic),
        }
        self.exhausted = true;
        None
    }
}

/// The requests as the loader takes them: looked at or not.
pub struct Requests(pub Arc<Ahead>);

impl Iterator for Requests {
    type Item = BatchRequest;

    fn next(&mut self) -> Option<BatchRequest> {
        let mut state = self.0.lock();
        let request = state.seen.pop_front();
        if let Some(request) = &request {
            state.seen_samples -= request.samples.len();
        }
        let request = request.or_else(|| state.pull());
        let panicked = if request.is_none() { state.panicked.take() } else { None };
        drop(state);
        self.0.changed.notify_all();
        panicked.map_or(request, |panic| resume_unwind(panic))
    }
}

fn blocks_of(config: &LoaderConfig, sample: SampleRequest, each: &mut dyn FnMut(Block)) -> Result<(), DataError> {
    if let Some(data) = config.datasets.get(sample.source as usize).filter(|data| sample.index.0 < data.len()) {
        data.image_blocks(sample.index, each)?;
        config.beside.as_ref().map_or(Ok(()), |beside| beside.blocks(sample, each))?;
    }
    Ok(())
}
