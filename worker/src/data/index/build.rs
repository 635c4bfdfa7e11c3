//! The indices of many shards: read where they are good, made where they are not, several at a time.

use super::{Footer, KEPT_OPEN, Places, Rows, ShardIndex, Store, place::publish};
use crate::data::{
    DataError,
    blob::{Blob, Found},
    source::Stat,
    storage::{Location, Storage},
};
use std::{
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

/// The fewest threads that read shards: on shared storage they wait rather than compute.
const READERS: usize = 8;
/// Indices that are together no larger than this are read and checked at the start; larger ones page by page as they are
/// used.
const CHECK_WHOLE: u64 = 256 << 20;

/// How a kind of shard is read.
pub trait ShardReader: Sync {
    /// What distinguishes its indices from those of others.
    fn kind(&self) -> String;

    /// Reads one shard in one pass.
    fn read(&self, shard: &Blob) -> Result<Rows, DataError>;
}

/// How far indexing is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Shards that are done.
    pub shards: u64,
    /// Of how many.
    pub of: u64,
    /// How many of the done ones had to be read.
    pub read: u64,
    /// The bytes of those.
    pub read_bytes: u64,
}

/// Opens the index of every shard, in the shards' order; those that are missing or stale are made.
///
/// An interrupted call has left the indices of the shards it finished.
pub fn open_all(
    storage: &Arc<Storage>,
    shards: &[Found],
    reader: &dyn ShardReader,
    places: &Places,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Vec<ShardIndex>, DataError> {
    let (done, read, bytes) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let one_of = Indexing { storage, shards: shards.len() as u64, reader, places, unwritable: AtomicBool::new(false) };
    let one = |i: usize| {
        let (index, made) = one_of.open_or_make(&shards[i])?;
        if i < KEPT_OPEN {
            index.keep_open();
        }
        if made {
            read.fetch_add(1, Ordering::Relaxed);
            bytes.fetch_add(index.footer().shard.size, Ordering::Relaxed);
        }
        let finished = done.fetch_add(1, Ordering::Relaxed) + 1;
        let (read, read_bytes) = (read.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed));
        progress(Progress { shards: finished, of: shards.len() as u64, read, read_bytes });
        Ok(index)
    };
    in_parallel(shards.len(), one).into_iter().collect()
}

/// What the indexing of one shard shares with that of the others.
struct Indexing<'a> {
    storage: &'a Arc<Storage>,
    /// How many shards there are.
    shards: u64,
    reader: &'a dyn ShardReader,
    places: &'a Places,
    /// Whether it was said that an index cannot be written.
    unwritable: AtomicBool,
}

impl Indexing<'_> {
    /// A shard's index, and whether it was made.
    fn open_or_make(&self, found: &Found) -> Result<(ShardIndex, bool), DataError> {
        let location = found.location();
        let io = |operation| {
            let location = &location;
            move |source| DataError::io(operation, location, source)
        };
        let blob = Blob::open(self.storage, found).map_err(io("open"))?;
        let shard = blob.stat().map_err(io("read"))?;
        let kind = self.reader.kind();
        // A folder does not change its time when something in its folders does: it is listed at every start.
        let files = if blob.folder().is_some() { Vec::new() } else { self.places.of_shard(&location) };
        for file in files.iter().filter(|file| file.exists()) {
            match open_if_good(file, &shard, &kind, self.shards) {
                Ok(index) => return Ok((index, false)),
                Err(reason) => {
                    tracing::info!(shard = %location, index = %file.display(), reason, "the index is made anew");
                }
            }
        }
        let rows = self.reader.read(&blob)?;
        let after = blob.stat().map_err(io("read"))?;
        if after != shard {
            return Err(DataError::ShardChanged { path: location, was: shard.size, is: after.size });
        }
        let bytes = rows.write(&kind, shard, Vec::new()).map_err(io("index"))?;
        for file in &files {
            match publish(file, &bytes) {
                Ok(()) => {
                    let store = Store::File(file.clone(), OnceLock::new());
                    return opened(ShardIndex::open(store), &file.clone().into()).map(|index| (index, true));
                }
                // Data sets of thousands of shards say it once.
                Err(error) if !self.unwritable.swap(true, Ordering::Relaxed) => tracing::warn!(
                    index = %file.display(),
                    %error,
                    "an index cannot be written there: it is kept elsewhere or in memory, and made again at the next start"
                ),
                Err(_) => {}
            }
        }
        opened(ShardIndex::open(Store::Memory(bytes)), &location).map(|index| (index, true))
    }
}

fn opened(
    index: Result<ShardIndex, crate::data::container::ContainerError>,
    path: &Location,
) -> Result<ShardIndex, DataError> {
    index.map_err(|error| DataError::DamagedIndex { path: path.clone(), reason: error.to_string() })
}

/// An index that is whole and of this shard as it is now, or why it is not used.
fn open_if_good(file: &Path, shard: &Stat, kind: &str, shards: u64) -> Result<ShardIndex, String> {
    let index = ShardIndex::open(Store::File(file.to_owned(), OnceLock::new())).map_err(|error| error.to_string())?;
    if index.footer().shard != *shard {
        return Err("the shard has changed".to_owned());
    }
    if index.footer().kind != kind {
        return Err("the shard was read in another way".to_owned());
    }
    if index.length().saturating_mul(shards) <= CHECK_WHOLE {
        index.check().map_err(|error| error.to_string())?;
    }
    Ok(index)
}

/// Writes an index anew with another footer, where it lies now: how `data verify` records what it found.
pub fn rewrite(index: &ShardIndex, footer: &Footer) -> std::io::Result<()> {
    let Store::File(path, _) = index.container.source() else { return Ok(()) };
    let mut writer = crate::data::container::Writer::new(Vec::new())?;
    let mut bytes = Vec::new();
    let length = index.container.length();
    index.container.read(0, length, &mut bytes).map_err(std::io::Error::other)?;
    writer.append(&bytes)?;
    publish(path, &writer.finish(footer)?)
}

/// Does `work` for 0..n on a few threads; the results are in order.
pub fn in_parallel<T: Send>(n: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let run = || {
        let mut done = Vec::new();
        while let Some(i) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|i| *i < n) {
            done.push((i, work(i)));
        }
        done
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).max(READERS).min(n);
    let mut all: Vec<(usize, T)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Vec<(usize, T)>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().flat_map(join).collect()
    });
    all.sort_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, result)| result).collect()
}

/// Tars.
pub struct Tars;

impl ShardReader for Tars {
    fn kind(&self) -> String {
        "tar-1".to_owned()
    }

    fn read(&self, shard: &Blob) -> Result<Rows, DataError> {
        crate::data::scan::scan(shard, &shard.location())
    }
}
