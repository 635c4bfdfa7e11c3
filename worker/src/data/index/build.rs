//! The indices of many shards: read where they are good, made where they are not, several at a time.

use super::{Footer, KEPT_OPEN, Places, Rows, ShardIndex, Store, one::Indexing, place::publish};
use crate::{
    data::{
        DataError,
        blob::{Blob, Found},
    },
    storage::Storage,
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

/// The fewest threads that read shards: on shared storage they wait rather than compute.
const READERS: usize = 8;

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
