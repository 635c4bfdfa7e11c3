//! Objects: requests on a runtime of their own, and threads that wait for them.

use super::{
    Children, Entry, Limits, Location, ObjectUrl, StorageError,
    cache::{Block, BlockCache, Claim, Key, Object, Ticket},
    credentials::Environment,
    pattern,
    request::{Shared, anything_in, block_of, children_of, entry, list_after, lock},
    retry::{Failure, Patience, sort, until_it_works, within},
    scatter::{Piece, pieces},
};
use object_store::{ObjectMeta, ObjectStoreExt as _};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Instant,
};
use tokio::{runtime::Runtime, sync::Semaphore};
use tokio_util::sync::CancellationToken;

/// Threads that drive requests. They only move bytes: decoding happens on the caller's.
const THREADS: usize = 2;
/// Blocks that one read asks for at a time.
const GROUP: usize = 16;

/// All object stores that a process reads.
#[derive(Debug)]
pub struct Remote {
    // Taken when dropped.
    runtime: Option<Runtime>,
    pub(super) shared: Arc<Shared>,
    cache: Arc<BlockCache>,
    cancelled: CancellationToken,
}

impl Remote {
    /// Starts the runtime; no request is made.
    pub fn start(limits: Limits, environment: Vec<(String, String)>) -> Result<Self, StorageError> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(THREADS).thread_name("storage").enable_all().build();
        let shared = Shared {
            environment: Environment(environment),
            clients: Mutex::default(),
            slots: Semaphore::new(limits.requests),
            requests: AtomicU64::new(0),
            versions: Mutex::default(),
            limits,
        };
        Ok(Self {
            runtime: Some(runtime.map_err(StorageError::Start)?),
            cache: BlockCache::new(shared.limits.cache),
            shared: Arc::new(shared),
            cancelled: CancellationToken::new(),
        })
    }

    /// What matches, sorted.
    pub fn list(&self, url: &ObjectUrl) -> Result<Vec<Entry>, StorageError> {
        let no_match = || StorageError::NoMatch { pattern: Location::Object(url.clone()) };
        if !pattern::is_pattern(url.name()) {
            return match self.stat(url) {
                Err(StorageError::NotFound { .. }) => Err(no_match()),
                found => Ok(vec![found?]),
            };
        }
        // A failed listing goes on behind the last object that came, and a long one as long as something comes.
        let so_far: Arc<Mutex<Vec<ObjectMeta>>> = Arc::default();
        loop {
            let before = lock(&so_far).len();
            let (wanted, found) = (url.clone(), so_far.clone());
            match self.wait_for("list", url, move |shared, _| list_after(shared, wanted.clone(), found.clone())) {
                Err(StorageError::GaveUp { .. }) if lock(&so_far).len() > before => {}
                ended => break ended?,
            }
        }
        let mut entries = self.entries(url, std::mem::take(&mut *lock(&so_far)))?;
        entries.sort();
        if entries.is_empty() { Err(no_match()) } else { Ok(entries) }
    }

    /// Listed objects as `stat` gives them: some servers list without ETag, and then each has to be looked at.
    fn entries(&self, pattern: &ObjectUrl, listed: Vec<ObjectMeta>) -> Result<Vec<Entry>, StorageError> {
        let mut entries = Vec::with_capacity(listed.len());
        for metas in listed.chunks(GROUP) {
            let begun: Vec<_> = metas
                .iter()
                .map(|meta| {
                    let url = ObjectUrl { key: meta.location.to_string(), ..pattern.clone() };
                    (meta.e_tag.is_none().then(|| self.look(&url)), url, meta)
                })
                .collect();
            for (look, url, meta) in begun {
                entries.push(match look {
                    Some(look) => self.finish("look at", &url, look)?,
                    None => entry(url, meta),
                });
            }
        }
        Ok(entries)
    }

    /// An object's size and version.
    pub fn stat(&self, url: &ObjectUrl) -> Result<Entry, StorageError> {
        self.finish("look at", url, self.look(url))
    }

    /// What lies directly in a folder, by name, sorted.
    pub fn children(&self, folder: &ObjectUrl) -> Result<Children, StorageError> {
        let wanted = folder.clone();
        self.wait_for("list", folder, move |shared, _| children_of(shared, wanted.clone()))
    }

    /// A small object as it is now, whatever was read of it before.
    pub fn get(&self, url: &ObjectUrl) -> Result<Vec<u8>, StorageError> {
        let wanted = url.clone();
        self.wait_for("read", url, move |shared, _| {
            let url = wanted.clone();
            async move {
                let (client, path) = shared.client(&url)?;
                let got = client.get(&path).await.map_err(|error| sort(&error))?;
                let due = got.meta.size;
                let bytes = got.bytes().await.map_err(|error| sort(&error))?;
                if bytes.len() as u64 == due {
                    return Ok(bytes.to_vec());
                }
                Err(Failure::Passing(format!("{} bytes, where {due} are due", bytes.len())))
            }
        })
    }

    /// Whether it is a folder of objects.
    pub fn is_folder(&self, url: &ObjectUrl) -> Result<bool, StorageError> {
        let wanted = url.clone();
        self.wait_for("list", url, move |shared, _| anything_in(shared, wanted.clone()))
    }

    fn look(&self, url: &ObjectUrl) -> mpsc::Receiver<Result<Entry, StorageError>> {
        let wanted = url.clone();
        self.begin("look at", url, move |shared, _| {
            let url = wanted.clone();
            async move {
                let (client, path) = shared.client(&url)?;
                let meta = client.head(&path).await.map_err(|error| sort(&error))?;
                Ok(entry(url, &meta))
            }
        })
    }

    /// Reads an object of any length.
    pub fn read_all(&self, url: &ObjectUrl, bytes: &mut Vec<u8>) -> Result<(), StorageError> {
        bytes.clear();
        let object = Object { url: url.clone(), version: None };
        let size = match self.blocks(&Arc::new(object.clone()), &[0]) {
            Ok(blocks) => blocks[0].object_size,
            Err(StorageError::PastEnd { size: 0, .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        bytes.resize(usize::try_from(size).expect("an object fits in memory"), 0);
        self.read(object, &mut [(0, bytes)])
    }

    /// Fills each part from its offset on, block by block.
    pub fn read(&self, object: Object, parts: &mut [(u64, &mut [u8])]) -> Result<(), StorageError> {
        let object = Arc::new(object);
        let url = &object.url;
        let pieces = pieces(parts.iter().map(|(offset, bytes)| (*offset, bytes.len())), self.shared.limits.block);
        let mut rest = pieces.as_slice();
        while !rest.is_empty() {
            let mut numbers: Vec<u64> = Vec::new();
            let fits = |piece: &&Piece| {
                let new = numbers.last() != Some(&piece.block);
                if new && numbers.len() < GROUP {
                    numbers.push(piece.block);
                }
                numbers.last() == Some(&piece.block)
            };
            let count = rest.iter().take_while(fits).count();
            let (group, later) = rest.split_at(count);
            let past_end = |(offset, bytes): &(u64, &mut [u8]), size| {
                let (offset, end) = (*offset, *offset + bytes.len() as u64);
                StorageError::PastEnd { location: Location::Object(url.clone()), offset, end, size }
            };
            let blocks = self.blocks(&object, &numbers).map_err(|error| match error {
                // Of the block; the caller asked for something else.
                StorageError::PastEnd { offset, size, .. } => {
                    let number = offset / self.shared.limits.block;
                    let piece = group.iter().find(|piece| piece.block == number).expect("its block was asked for");
                    past_end(&parts[piece.part], size)
                }
                error => error,
            })?;
            for piece in group {
                let at = numbers.binary_search(&piece.block).expect("its block was asked for");
                let Some(from) = blocks[at].bytes.get(piece.from.clone()) else {
                    return Err(past_end(&parts[piece.part], blocks[at].object_size));
                };
                parts[piece.part].1[piece.at..piece.at + from.len()].copy_from_slice(from);
            }
            rest = later;
        }
        Ok(())
    }

    /// Begins to load a block, unless it is there or under way, and returns at once. `token` is dropped when that has ended. What fails is
    /// not told: who reads the block asks for it again, and is told.
    pub fn fetch_ahead(&self, key: &Key, token: impl Send + 'static) {
        let Claim::Mine(ticket) = self.cache.claim(key) else { return };
        let (object, shared) = (key.0.clone(), self.shared.clone());
        self.spawn("read", &key.0.url, block_of(&key.0.url, key.1), move |outcome| {
            match outcome.and_then(|loaded| shared.check_version(&object, &loaded).map(|()| loaded)) {
                Ok(loaded) => ticket.fulfil(loaded.block),
                Err(error) => {
                    tracing::debug!(%error, "a block could not be fetched ahead");
                    drop(ticket);
                }
            }
            drop(token);
        });
    }

    /// Nobody will want a block soon: others stay in its place.
    pub fn let_go(&self, key: &Key) {
        self.cache.let_go(key);
    }

    /// Ends all requests.
    pub fn cancel(&self) {
        self.cancelled.cancel();
    }

    /// How many requests were made.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// The blocks of an object, in order; those that are not kept are asked for all at once.
    fn blocks(&self, object: &Arc<Object>, numbers: &[u64]) -> Result<Vec<Block>, StorageError> {
        let url = &object.url;
        let mut found: Vec<Option<Block>> = vec![None; numbers.len()];
        // When the thread that loads a block gives up it is our turn, unless we have waited as long as it has.
        let (started, longest) = (Instant::now(), self.shared.limits.deadline);
        while found.iter().any(Option::is_none) {
            let mut mine: Vec<(usize, Ticket)> = Vec::new();
            let mut theirs: Option<Key> = None;
            for (at, number) in numbers.iter().enumerate().filter(|(at, _)| found[*at].is_none()).collect::<Vec<_>>() {
                let key = (object.clone(), *number);
                match self.cache.claim(&key) {
                    Claim::Ready(block) => found[at] = Some(block),
                    Claim::Mine(ticket) => mine.push((at, ticket)),
                    Claim::Theirs => theirs = Some(key),
                }
            }
            let waiting: Vec<_> =
                mine.iter().map(|(at, _)| self.begin("read", url, block_of(url, numbers[*at]))).collect();
            for ((at, ticket), waiting) in mine.into_iter().zip(waiting) {
                let loaded = self.finish("read", url, waiting)?;
                self.shared.check_version(object, &loaded)?;
                ticket.fulfil(loaded.block.clone());
                found[at] = Some(loaded.block);
            }
            if let Some(key) = theirs {
                self.cache.wait(&key, longest.saturating_sub(started.elapsed()));
                if started.elapsed() >= longest && !matches!(self.cache.claim(&key), Claim::Ready(_)) {
                    let answer = "none; another thread asked for the same block and got no good answer".to_owned();
                    let (operation, location, seconds) = ("read", Location::Object(url.clone()), longest.as_secs_f64());
                    return Err(StorageError::GaveUp { operation, location, attempts: 0, seconds, answer });
                }
            }
        }
        Ok(found.into_iter().flatten().collect())
    }

    pub(super) fn wait_for<T, F, A>(
        &self,
        operation: &'static str,
        url: &ObjectUrl,
        attempt: A,
    ) -> Result<T, StorageError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
        A: FnMut(Arc<Shared>, u32) -> F + Send + 'static,
    {
        let begun = self.begin(operation, url, attempt);
        self.finish(operation, url, begun)
    }

    /// Starts a request with all its tries.
    pub(super) fn begin<T, F, A>(
        &self,
        operation: &'static str,
        url: &ObjectUrl,
        attempt: A,
    ) -> mpsc::Receiver<Result<T, StorageError>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
        A: FnMut(Arc<Shared>, u32) -> F + Send + 'static,
    {
        let (answer, receiver) = mpsc::sync_channel(1);
        // Nobody may wait any more: a read of several blocks ends with the first error.
        self.spawn(operation, url, attempt, move |outcome| drop(answer.send(outcome)));
        receiver
    }

    /// As [`Remote::begin`]; `then` gets what comes, on a thread of the runtime.
    fn spawn<T, F, A>(
        &self,
        operation: &'static str,
        url: &ObjectUrl,
        mut attempt: A,
        then: impl FnOnce(Result<T, StorageError>) + Send + 'static,
    ) where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
        A: FnMut(Arc<Shared>, u32) -> F + Send + 'static,
    {
        let (shared, cancelled, url) = (self.shared.clone(), self.cancelled.clone(), url.clone());
        let runtime = self.runtime.as_ref().expect("it is there until it is dropped");
        runtime.spawn(async move {
            let Limits { attempt: longest, deadline, first_wait, .. } = shared.limits;
            let patience = Patience { deadline, first_wait };
            let tries = until_it_works(&patience, |tries| {
                let request = attempt(shared.clone(), tries);
                let shared = shared.clone();
                async move {
                    let _slot = shared.slots.acquire().await.expect("the semaphore is never closed");
                    shared.requests.fetch_add(1, Ordering::Relaxed);
                    within(longest, request).await
                }
            });
            then(tokio::select! {
                () = cancelled.cancelled() => Err(StorageError::Cancelled { operation, location: Location::Object(url) }),
                done = tries => done.map_err(|end| shared.error(operation, url, end)),
            });
        });
    }

    pub(super) fn finish<T>(
        &self,
        operation: &'static str,
        url: &ObjectUrl,
        begun: mpsc::Receiver<Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        // The sender goes without a word only when the runtime ends.
        let cancelled = || StorageError::Cancelled { operation, location: Location::Object(url.clone()) };
        begun.recv().unwrap_or_else(|_| Err(cancelled()))
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // Without waiting for requests that a dead server holds.
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}
