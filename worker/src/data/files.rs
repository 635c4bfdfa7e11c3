//! Open shards: a bounded number of them, read by position. Everything of a shard is read here, so that one that changed
//! after it was indexed is noticed before its bytes are believed.

use super::{
    DataError,
    blob::{Blob, Found},
    source::{ReadAt as _, Stat},
};
use crate::storage::{Block, Location, Storage, StorageError};
use std::{
    collections::HashMap,
    io,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

/// Files held open at once, well below the usual limit of 1024 a process.
const OPEN: usize = 256;

/// The shards of a data set by number.
#[derive(Debug)]
pub struct Files {
    storage: Arc<Storage>,
    shards: Vec<(Found, Stat)>,
    open: Mutex<HashMap<u32, Blob>>,
}

impl Files {
    /// Nothing is opened yet. Each shard comes with what it was when it was indexed.
    pub fn new(storage: &Arc<Storage>, shards: Vec<(Found, Stat)>) -> Self {
        Self { storage: storage.clone(), shards, open: Mutex::default() }
    }

    /// What they are read through.
    pub fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    /// Whether any of them is an object.
    pub fn has_objects(&self) -> bool {
        self.shards.iter().any(|(found, _)| matches!(found, Found::Object(_)))
    }

    /// Hands on the blocks of object storage that a range of a shard lies in; none when it is a file.
    pub fn blocks(&self, shard: u32, range: Range<u64>, each: &mut dyn FnMut(Block)) {
        if let Found::Object(entry) = &self.shards[shard as usize].0 {
            self.storage.blocks_of(entry, range).for_each(each);
        }
    }

    /// Where a shard lies.
    pub fn location(&self, shard: u32) -> Location {
        self.shards[shard as usize].0.location()
    }

    /// Reads `length` bytes at `offset` of a shard into `bytes`, whose contents are replaced.
    ///
    /// # Errors
    /// When the shard is gone, or is no longer the one that was indexed.
    pub fn read(&self, shard: u32, offset: u64, length: usize, bytes: &mut Vec<u8>) -> Result<(), DataError> {
        let blob = self.blob(shard)?;
        bytes.clear();
        bytes.resize(length, 0);
        match blob.read_at(bytes, offset) {
            Ok(()) => self.unchanged(shard, blob.stat()),
            Err(source) => Err(self.failed(shard, &blob, source)),
        }
    }

    /// A shard, open and unchanged. Who reads from it says what went wrong by [`Files::failed`].
    pub fn blob(&self, shard: u32) -> Result<Blob, DataError> {
        let lock = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(blob) = lock().get(&shard) {
            return Ok(blob.clone());
        }
        let opened = Blob::open(&self.storage, &self.shards[shard as usize].0);
        let blob = opened.map_err(|source| self.error("open", shard, source))?;
        self.unchanged(shard, blob.stat())?;
        let mut open = lock();
        if open.len() >= OPEN {
            open.clear();
        }
        open.insert(shard, blob.clone());
        Ok(blob)
    }

    /// What a failed read of a shard means: it is gone, another one, or cannot be read.
    pub fn failed(&self, shard: u32, blob: &Blob, source: io::Error) -> DataError {
        let stored = source.get_ref().and_then(|inner| inner.downcast_ref::<StorageError>());
        // A store that gave no answer is not asked again.
        let answered = stored.is_none_or(|error| {
            matches!(error, StorageError::NotFound { .. } | StorageError::Changed { .. } | StorageError::PastEnd { .. })
        });
        let looked = if answered { self.unchanged(shard, blob.look()) } else { Ok(()) };
        looked.err().unwrap_or_else(|| self.error("read", shard, source))
    }

    fn unchanged(&self, shard: u32, now: io::Result<Stat>) -> Result<(), DataError> {
        let (found, indexed) = &self.shards[shard as usize];
        let now = now.map_err(|source| self.error("read", shard, source))?;
        if now == *indexed {
            return Ok(());
        }
        Err(DataError::ShardChanged { path: found.location(), was: indexed.size, is: now.size })
    }

    fn error(&self, operation: &'static str, shard: u32, source: io::Error) -> DataError {
        let path = self.location(shard);
        match DataError::io(operation, &path, source) {
            DataError::Storage(StorageError::NotFound { .. }) => DataError::ShardGone { path },
            DataError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => DataError::ShardGone { path },
            error => error,
        }
    }
}
