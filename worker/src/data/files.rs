//! Open shards: a bounded number of them, read by position. Everything of a shard is read here, so that one that changed
//! after it was indexed is noticed before its bytes are believed.

use super::{DataError, source::Stat};
use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// Files held open at once, well below the usual limit of 1024 a process.
const OPEN: usize = 256;

/// The shards of a data set by number.
#[derive(Debug)]
pub struct Files {
    shards: Vec<(PathBuf, Stat)>,
    open: Mutex<HashMap<u32, Arc<File>>>,
}

impl Files {
    /// Nothing is opened yet. Each shard comes with what it was when it was indexed.
    pub fn new(shards: Vec<(PathBuf, Stat)>) -> Self {
        Self { shards, open: Mutex::default() }
    }

    /// A shard's path.
    pub fn path(&self, shard: u32) -> &Path {
        &self.shards[shard as usize].0
    }

    /// Reads `length` bytes at `offset` of a shard into `bytes`, whose contents are replaced.
    ///
    /// # Errors
    /// When the shard is gone, or is no longer the one that was indexed.
    pub fn read(&self, shard: u32, offset: u64, length: usize, bytes: &mut Vec<u8>) -> Result<(), DataError> {
        let file = self.file(shard)?;
        bytes.clear();
        bytes.resize(length, 0);
        match file.read_exact_at(bytes, offset) {
            Ok(()) => self.unchanged(shard, &file),
            Err(source) => {
                self.unchanged(shard, &file)?;
                Err(self.io("read", shard)(source))
            }
        }
    }

    /// A shard, open and unchanged.
    pub fn file(&self, shard: u32) -> Result<Arc<File>, DataError> {
        let lock = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = lock().get(&shard) {
            return Ok(file.clone());
        }
        let opened = File::open(self.path(shard)).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => DataError::ShardGone { path: self.path(shard).to_owned() },
            _ => self.io("open", shard)(source),
        });
        let file = Arc::new(opened?);
        self.unchanged(shard, &file)?;
        let mut open = lock();
        if open.len() >= OPEN {
            open.clear();
        }
        open.insert(shard, file.clone());
        Ok(file)
    }

    fn unchanged(&self, shard: u32, file: &File) -> Result<(), DataError> {
        let indexed = self.shards[shard as usize].1;
        let now = Stat::of(&file.metadata().map_err(self.io("read", shard))?);
        if now == indexed {
            return Ok(());
        }
        let (path, was, is) = (self.path(shard).to_owned(), indexed.size, now.size);
        Err(DataError::ShardChanged { path, was, is })
    }

    fn io(&self, operation: &'static str, shard: u32) -> impl Fn(io::Error) -> DataError {
        move |source| DataError::Io { operation, path: self.path(shard).to_owned(), source }
    }
}
