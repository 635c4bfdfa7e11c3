//! The index of one shard: taken where it is good, fetched from beside an object, else made and kept.

use super::{Places, ShardIndex, ShardReader, Store, place::publish};
use crate::{
    data::{
        DataError,
        blob::{Blob, Found},
        container::ContainerError,
        source::Stat,
    },
    storage::{Location, Storage, StorageError},
};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

/// Indices that are together no larger than this are read and checked at the start; larger ones page by page as they are
/// used.
const CHECK_WHOLE: u64 = 256 << 20;

/// What the indexing of one shard shares with that of the others.
pub struct Indexing<'a> {
    /// What shards are read through.
    pub storage: &'a Arc<Storage>,
    /// How many shards there are.
    pub shards: u64,
    /// How they are read.
    pub reader: &'a dyn ShardReader,
    /// Where indices are kept.
    pub places: &'a Places,
    /// Whether it was said that an index cannot be written: data sets of thousands of shards say it once.
    pub unwritable: AtomicBool,
}

/// A shard, and where its index may be.
struct Shard {
    location: Location,
    blob: Blob,
    stat: Stat,
    files: Vec<PathBuf>,
    beside: Option<Location>,
}

impl Indexing<'_> {
    /// A shard's index, and whether it was made.
    pub fn open_or_make(&self, found: &Found) -> Result<(ShardIndex, bool), DataError> {
        let location = found.location();
        let io = |operation| {
            let location = &location;
            move |source| DataError::io(operation, location, source)
        };
        let blob = Blob::open(self.storage, found).map_err(io("open"))?;
        let stat = blob.stat().map_err(io("read"))?;
        // A folder does not change its time when something in its folders does: it is listed at every start.
        let files = if blob.folder().is_some() { Vec::new() } else { self.places.of_shard(&location) };
        let beside = self.places.beside_object(&location);
        let shard = Shard { location: location.clone(), blob, stat, files, beside };
        if let Some(index) = self.open(&shard) {
            return Ok((index, false));
        }
        if let Some(bytes) = self.fetch(&shard) {
            return self.keep(&shard, bytes).map(|index| (index, false));
        }
        let rows = self.reader.read(&shard.blob)?;
        let after = shard.blob.stat().map_err(io("read"))?;
        if after != shard.stat {
            return Err(DataError::ShardChanged { path: location, was: shard.stat.size, is: after.size });
        }
        let bytes = rows.write(&self.reader.kind(), shard.stat.clone(), Vec::new()).map_err(io("index"))?;
        if let Some(beside) = &shard.beside
            && let Err(error) = self.storage.put(beside, bytes.clone())
        {
            self.warn(beside, &error);
        }
        self.keep(&shard, bytes).map(|index| (index, true))
    }

    /// The index on this machine, if there is a good one.
    fn open(&self, shard: &Shard) -> Option<ShardIndex> {
        shard.files.iter().filter(|file| file.exists()).find_map(|file| {
            let store = Store::File(file.clone(), OnceLock::new());
            self.good(shard, store, &file.display())
        })
    }

    /// The index beside an object, if there is a good one.
    fn fetch(&self, shard: &Shard) -> Option<Vec<u8>> {
        let beside = shard.beside.as_ref()?;
        let read = || {
            let entry = self.storage.stat(beside)?;
            let mut bytes = vec![0; usize::try_from(entry.size).expect("an index fits in memory")];
            self.storage.read_entry(&entry, 0, &mut bytes).map(|()| bytes)
        };
        let bytes = match read() {
            Ok(bytes) => bytes,
            Err(StorageError::NotFound { .. }) => return None,
            Err(error) => {
                tracing::info!(shard = %shard.location, index = %beside, %error, "the index is made anew");
                return None;
            }
        };
        self.good(shard, Store::Memory(bytes.clone()), beside).map(|_| bytes)
    }

    /// An index that is whole and of this shard as it is now.
    fn good(&self, shard: &Shard, store: Store, index: &dyn std::fmt::Display) -> Option<ShardIndex> {
        let opened = ShardIndex::open(store).map_err(|error| error.to_string()).and_then(|index| {
            if index.footer().shard != shard.stat {
                return Err("the shard has changed".to_owned());
            }
            if index.footer().kind != self.reader.kind() {
                return Err("the shard was read in another way".to_owned());
            }
            if index.length().saturating_mul(self.shards) <= CHECK_WHOLE {
                index.check().map_err(|error| error.to_string())?;
            }
            Ok(index)
        });
        let said = |reason: &String| {
            tracing::info!(shard = %shard.location, %index, reason, "the index is made anew");
        };
        opened.inspect_err(said).ok()
    }

    /// Writes an index to the first place that takes it, and opens it there; else it is held in memory.
    fn keep(&self, shard: &Shard, bytes: Vec<u8>) -> Result<ShardIndex, DataError> {
        for file in &shard.files {
            match publish(file, &bytes) {
                Ok(()) => return opened(Store::File(file.clone(), OnceLock::new()), file),
                Err(error) => self.warn(&file.clone().into(), &error),
            }
        }
        opened(Store::Memory(bytes), Path::new("an index in memory"))
    }

    fn warn(&self, index: &Location, error: &dyn std::fmt::Display) {
        if !self.unwritable.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                %index,
                %error,
                "an index cannot be written there: it is kept elsewhere or in memory, and may be made again at the next start"
            );
        }
    }
}

fn opened(store: Store, path: &Path) -> Result<ShardIndex, DataError> {
    let damaged =
        |error: ContainerError| DataError::DamagedIndex { path: path.to_owned().into(), reason: error.to_string() };
    ShardIndex::open(store).map_err(damaged)
}
