//! Where data lies: files and objects behind one small synchronous interface, for threads that decode.
//!
//! A [`Location`] is a path or `s3://bucket/key`, `gs://…`, `az://…`. Files are read by position, with nothing in
//! between. Objects are read in blocks of a few megabytes through `object_store`, on a runtime that the [`Storage`] owns:
//! each block is asked for once however many threads want it (`cache`), every request is tried again until a deadline
//! (`retry`), and what comes back is counted before it is believed. It knows nothing of tars or samples.

mod cache;
mod command;
mod credentials;
mod download;
mod error;
mod limits;
mod local;
mod location;
mod pattern;
mod remote;
mod request;
mod retry;
mod scatter;
#[cfg(test)]
pub(crate) mod tests;
mod upload;
mod writing;

pub use command::{AskArgs, main};
pub use download::Download;
pub use error::StorageError;
pub use limits::Limits;
pub use location::{Location, ObjectUrl, Scheme};
pub(crate) use pattern::{is_pattern, matches};
pub use upload::Upload;

use cache::{Key, Object};
use local::Local;
use remote::Remote;
use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

/// A file or object, as it was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Where it lies.
    pub location: Location,
    /// Its length in bytes.
    pub size: u64,
    /// Changes when its contents do: the modification time in nanoseconds of a file, the ETag (or time) of an object.
    pub version: String,
}

/// A block of an object: what one request asks for, and what is kept as one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Block(Key);

/// What lies directly in a folder of objects, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Children {
    /// Folders, which are beginnings of objects' names.
    pub folders: Vec<String>,
    /// Objects.
    pub objects: Vec<String>,
}

/// All storage that a process reads and writes. Shared by reference; its methods block the calling thread, never longer than
/// [`Limits::deadline`] a request. Not to be called on a thread of an async runtime.
#[derive(Debug)]
pub struct Storage {
    local: Local,
    // Its runtime starts with the first object that is asked for.
    remote: OnceLock<Remote>,
    limits: Limits,
    environment: Vec<(String, String)>,
}

impl Storage {
    /// Storage with the credentials and endpoints of this process's environment (`AWS_*`, `GOOGLE_*`, `AZURE_*`).
    pub fn from_environment(limits: Limits) -> Self {
        Self::new(limits, std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))))
    }

    /// Storage with the given variables in place of the environment.
    pub fn new(limits: Limits, environment: impl IntoIterator<Item = (String, String)>) -> Self {
        let environment = environment.into_iter().collect();
        Self { local: Local::default(), remote: OnceLock::new(), limits, environment }
    }

    /// What matches a pattern, sorted by location: `*` and `?` in the last component, files and objects only. A pattern
    /// without them names one.
    ///
    /// # Errors
    /// When nothing matches, or the storage cannot be asked.
    pub fn list(&self, pattern: &Location) -> Result<Vec<Entry>, StorageError> {
        match pattern {
            Location::Local(path) => self.local.list(path),
            Location::Object(url) => self.remote()?.list(url),
        }
    }

    /// Size and version of one file or object.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] when it is not there.
    pub fn stat(&self, location: &Location) -> Result<Entry, StorageError> {
        match location {
            Location::Local(path) => self.local.stat(path),
            Location::Object(url) => self.remote()?.stat(url),
        }
    }

    /// Whether there is a file or object of that name.
    ///
    /// # Errors
    /// When the storage cannot be asked.
    pub fn exists(&self, location: &Location) -> Result<bool, StorageError> {
        match self.stat(location) {
            Ok(_) => Ok(true),
            Err(StorageError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether there are objects whose names begin with this one and a `/`. Of files it is false.
    ///
    /// # Errors
    /// When the storage cannot be asked.
    pub fn is_folder_of_objects(&self, location: &Location) -> Result<bool, StorageError> {
        match location {
            Location::Local(_) => Ok(false),
            Location::Object(url) => self.remote()?.is_folder(url),
        }
    }

    /// Reads `length` bytes at `offset` into `bytes`, whose contents are replaced.
    ///
    /// # Errors
    /// As [`Storage::read_into`].
    pub fn read_range(
        &self,
        location: &Location,
        offset: u64,
        length: usize,
        bytes: &mut Vec<u8>,
    ) -> Result<(), StorageError> {
        bytes.clear();
        bytes.resize(length, 0);
        self.read_into(location, offset, bytes)
    }

    /// Fills `bytes` with what lies at `offset`.
    ///
    /// # Errors
    /// When the file or object is not there, ends before that, has changed since its first block was read, or does not
    /// answer in time. Then the contents of `bytes` mean nothing.
    pub fn read_into(&self, location: &Location, offset: u64, bytes: &mut [u8]) -> Result<(), StorageError> {
        match location {
            Location::Local(path) => self.local.read_into(path, offset, bytes),
            Location::Object(url) => self.remote()?.read(any(url), &mut [(offset, bytes)]),
        }
    }

    /// As [`Storage::read_into`], of an object as it was when it was looked at. Files are read as they are now.
    ///
    /// # Errors
    /// As [`Storage::read_into`], and [`StorageError::Changed`] when the object is another one by now.
    pub fn read_entry(&self, entry: &Entry, offset: u64, bytes: &mut [u8]) -> Result<(), StorageError> {
        match &entry.location {
            Location::Local(path) => self.local.read_into(path, offset, bytes),
            Location::Object(url) => {
                let object = Object { url: url.clone(), version: Some(entry.version.clone()) };
                self.remote()?.read(object, &mut [(offset, bytes)])
            }
        }
    }

    /// Reads a whole file or object into `bytes`, whose contents are replaced. An object of one block is one request.
    ///
    /// # Errors
    /// As [`Storage::read_into`].
    pub fn read_all(&self, location: &Location, bytes: &mut Vec<u8>) -> Result<(), StorageError> {
        match location {
            Location::Local(path) => self.local.read_all(path, bytes),
            Location::Object(url) => self.remote()?.read_all(url, bytes),
        }
    }

    /// Reads several ranges, in any order, with as few requests as their blocks allow. The results are in the ranges'
    /// order.
    ///
    /// # Errors
    /// As [`Storage::read_into`].
    pub fn read_ranges(&self, location: &Location, ranges: &[Range<u64>]) -> Result<Vec<Vec<u8>>, StorageError> {
        let length = |range: &Range<u64>| usize::try_from(range.end - range.start).expect("a range fits in memory");
        let mut read: Vec<Vec<u8>> = ranges.iter().map(|range| vec![0; length(range)]).collect();
        let mut parts: Vec<(u64, &mut [u8])> =
            ranges.iter().zip(&mut read).map(|(range, bytes)| (range.start, bytes.as_mut_slice())).collect();
        match location {
            Location::Local(path) => self.local.read(path, &mut parts)?,
            Location::Object(url) => self.remote()?.read(any(url), &mut parts)?,
        }
        Ok(read)
    }

    /// Writes a file or object as a whole: it appears under its name when all of it is there and safe.
    pub fn put(&self, location: &Location, bytes: Vec<u8>) -> Result<(), StorageError> {
        match location {
            Location::Local(path) => self.local.put(path, &bytes),
            Location::Object(url) => self.remote()?.put(url, bytes),
        }
    }

    /// As [`Storage::put`], unless there is one of that name already; says whether it was written.
    pub fn put_if_absent(&self, location: &Location, bytes: Vec<u8>) -> Result<bool, StorageError> {
        match location {
            Location::Local(path) => self.local.put_if_absent(path, &bytes),
            Location::Object(url) => self.remote()?.put_if_absent(url, bytes),
        }
    }

    /// An object that is written as a stream of so many bytes.
    ///
    /// # Errors
    /// When the threads for requests cannot be started.
    pub fn upload(&self, url: &ObjectUrl, bytes: u64) -> Result<Upload<'_>, StorageError> {
        Ok(Upload::new(self.remote()?, url.clone(), bytes))
    }

    /// An object as it was when it was looked at, from its beginning to its end, past what is kept of it.
    ///
    /// # Errors
    /// When the threads for requests cannot be started.
    pub fn download(&self, url: &ObjectUrl, entry: &Entry) -> Result<Download<'_>, StorageError> {
        Ok(Download::new(self.remote()?, url, entry))
    }

    /// A small object as it is now, whatever was read of it before.
    ///
    /// # Errors
    /// When it is not there, or the storage cannot be asked.
    pub fn get(&self, url: &ObjectUrl) -> Result<Vec<u8>, StorageError> {
        self.remote()?.get(url)
    }

    /// What lies directly in a folder of objects, sorted; nothing when there is none.
    ///
    /// # Errors
    /// When the storage cannot be asked.
    pub fn children(&self, folder: &ObjectUrl) -> Result<Children, StorageError> {
        self.remote()?.children(folder)
    }

    /// Deletes an object; that there is none is no error.
    ///
    /// # Errors
    /// When the storage refuses.
    pub fn delete(&self, url: &ObjectUrl) -> Result<(), StorageError> {
        self.remote()?.delete(url)
    }

    /// Copies an object within its bucket, over what is there.
    ///
    /// # Errors
    /// When it is not there, or the storage refuses.
    pub fn copy(&self, from: &ObjectUrl, to: &ObjectUrl) -> Result<(), StorageError> {
        self.remote()?.copy(from, to)
    }

    /// Ends every request that is under way, and every later one, with [`StorageError::Cancelled`].
    pub fn cancel(&self) {
        if let Ok(remote) = self.remote() {
            remote.cancel();
        }
    }

    /// Requests that were sent, retries included: what a block shuffle or a test wants to know.
    pub fn requests(&self) -> u64 {
        self.remote.get().map_or(0, Remote::requests)
    }

    /// Bytes of an object that one request asks for: reads much shorter than this do not pay.
    pub fn block(&self) -> u64 {
        self.limits.block
    }

    /// The blocks that a range of an object as it was when it was looked at lies in; a file has none.
    pub fn blocks_of(&self, entry: &Entry, range: Range<u64>) -> impl Iterator<Item = Block> + use<> {
        let object = match &entry.location {
            Location::Object(url) if !range.is_empty() => {
                Some(Arc::new(Object { url: url.clone(), version: Some(entry.version.clone()) }))
            }
            _ => None,
        };
        let block = self.limits.block;
        object.into_iter().flat_map(move |object| {
            (range.start / block..range.end.div_ceil(block)).map(move |number| Block((object.clone(), number)))
        })
    }

    /// The first block of an object in the version in which it is first read; a file has none.
    pub fn first_block(&self, location: &Location) -> Option<Block> {
        match location {
            Location::Local(_) => None,
            Location::Object(url) => Some(Block((Arc::new(any(url)), 0))),
        }
    }

    /// Begins to fetch a block unless it is there or under way, and returns at once; `token` is dropped when that has ended. A failure is
    /// not told: who reads the block asks for it again, and is told.
    pub fn fetch_ahead(&self, block: &Block, token: impl Send + 'static) {
        if let Ok(remote) = self.remote() {
            remote.fetch_ahead(&block.0, token);
        }
    }

    /// Nobody will want a block soon: it is the first that is not kept.
    pub fn let_go(&self, block: &Block) {
        if let Some(remote) = self.remote.get() {
            remote.let_go(&block.0);
        }
    }

    /// Bytes of the blocks of all samples that a loader has in sight, see [`Limits::ahead`].
    pub fn ahead(&self) -> u64 {
        self.limits.ahead.min(self.limits.cache)
    }

    /// Requests that may be under way for blocks that nobody waits for yet: half of all.
    pub fn requests_ahead(&self) -> usize {
        (self.limits.requests / 2).max(1)
    }

    fn remote(&self) -> Result<&Remote, StorageError> {
        if let Some(remote) = self.remote.get() {
            return Ok(remote);
        }
        let started = Remote::start(self.limits.clone(), self.environment.clone())?;
        // Another thread may have been first; its runtime is the one that stays.
        Ok(self.remote.get_or_init(|| started))
    }
}

/// An object in the version in which it is first read.
fn any(url: &ObjectUrl) -> Object {
    Object { url: url.clone(), version: None }
}
