//! Open shards: a bounded number of them, read by position.

use super::DataError;
use std::{
    collections::HashMap,
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// Files held open at once, well below the usual limit of 1024 a process.
const OPEN: usize = 256;

/// The shards of a data set by number.
#[derive(Debug)]
pub struct Files {
    paths: Vec<PathBuf>,
    open: Mutex<HashMap<u32, Arc<File>>>,
}

impl Files {
    /// Nothing is opened yet.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, open: Mutex::default() }
    }

    /// A shard's path.
    pub fn path(&self, shard: u32) -> &Path {
        &self.paths[shard as usize]
    }

    /// Reads `length` bytes at `offset` of a shard into `bytes`, whose contents are replaced.
    pub fn read(&self, shard: u32, offset: u64, length: usize, bytes: &mut Vec<u8>) -> Result<(), DataError> {
        let io = |operation| move |source| DataError::Io { operation, path: self.path(shard).to_owned(), source };
        let file = self.file(shard).map_err(io("open"))?;
        bytes.clear();
        bytes.resize(length, 0);
        file.read_exact_at(bytes, offset).map_err(io("read"))
    }

    fn file(&self, shard: u32) -> std::io::Result<Arc<File>> {
        let lock = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = lock().get(&shard) {
            return Ok(file.clone());
        }
        let file = Arc::new(File::open(self.path(shard))?);
        let mut open = lock();
        if open.len() >= OPEN {
            open.clear();
        }
        open.insert(shard, file.clone());
        Ok(file)
    }
}
