//! Files and objects: found by a pattern, then open, then read by position.
//!
//! A file is read from its own handle, with nothing in between. An object is read through the process's storage, block by
//! block, always in the version that it had when it was found.

use super::{
    DataError,
    source::{ReadAt, Stat},
};
use crate::storage::{Entry, Location, Storage};
use std::{
    fs::File,
    io::{self, BufReader, Read},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Blocks that are asked for at once by who goes through a whole object: one request at a time fills no link.
const AHEAD: u64 = 4;
/// The fewest bytes that a stream reads at a time.
const STREAM: usize = 1 << 20;

/// A file, or a folder of images, or an object with what was found out about it; none of them open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// In a file system.
    File(PathBuf),
    /// In an object store.
    Object(Entry),
}

impl Found {
    /// Where it lies.
    pub fn location(&self) -> Location {
        match self {
            Self::File(path) => Location::Local(path.clone()),
            Self::Object(entry) => entry.location.clone(),
        }
    }

    /// What it is now; of an object, what it was when it was found.
    pub fn stat(&self) -> Result<Stat, DataError> {
        match self {
            Self::File(path) => {
                let metadata = std::fs::metadata(path);
                metadata.map(|metadata| Stat::of(&metadata)).map_err(|e| DataError::io("read", &self.location(), e))
            }
            Self::Object(entry) => Ok(Stat::of_object(entry)),
        }
    }
}

/// A file or object that is open; threads share it.
#[derive(Debug, Clone)]
pub struct Blob(Arc<Open>);

#[derive(Debug)]
enum Open {
    File(File, PathBuf),
    Object(Arc<Storage>, Entry),
}

impl Blob {
    /// Opens what was found. Of objects nothing is asked.
    pub fn open(storage: &Arc<Storage>, found: &Found) -> io::Result<Self> {
        Ok(Self(Arc::new(match found {
            Found::File(path) => Open::File(File::open(path)?, path.clone()),
            Found::Object(entry) => Open::Object(storage.clone(), entry.clone()),
        })))
    }

    /// Opens the file or object of a name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(storage: &Arc<Storage>, location: &Location) -> Result<Self, DataError> {
        let found = match location {
            Location::Local(path) => Found::File(path.clone()),
            Location::Object(_) => Found::Object(storage.stat(location)?),
        };
        Self::open(storage, &found).map_err(|source| DataError::io("open", location, source))
    }

    /// Where it lies.
    pub fn location(&self) -> Location {
        match &*self.0 {
            Open::File(_, path) => Location::Local(path.clone()),
            Open::Object(_, entry) => entry.location.clone(),
        }
    }

    /// Its path, if it is a folder.
    pub fn folder(&self) -> Option<&Path> {
        match &*self.0 {
            Open::File(_, path) if path.is_dir() => Some(path),
            _ => None,
        }
    }

    /// What the open file is now; an object is always read as it was when it was found.
    pub fn stat(&self) -> io::Result<Stat> {
        match &*self.0 {
            Open::File(file, _) => Ok(Stat::of(&file.metadata()?)),
            Open::Object(_, entry) => Ok(Stat::of_object(entry)),
        }
    }

    /// What there is now in its place; an object's store is asked.
    pub fn look(&self) -> io::Result<Stat> {
        match &*self.0 {
            Open::File(..) => self.stat(),
            Open::Object(storage, entry) => {
                storage.stat(&entry.location).map(|entry| Stat::of_object(&entry)).map_err(io::Error::other)
            }
        }
    }

    /// Its bytes from the beginning on, in long reads.
    pub fn stream(&self) -> BufReader<Stream> {
        BufReader::with_capacity(self.window().max(STREAM), self.read_from(0))
    }

    /// Its bytes from a position on.
    pub fn read_from(&self, at: u64) -> Stream {
        Stream { blob: self.clone(), at }
    }

    /// Begins to fetch the next blocks of an object that will be read from `at` on; `planned` are the ranges that will be read, in
    /// their order. Of files nothing is asked: the system reads them ahead.
    pub fn read_ahead(&self, at: u64, planned: &[Range<u64>]) {
        let Open::Object(storage, entry) = &*self.0 else { return };
        if storage.ahead() < AHEAD * storage.block() {
            return;
        }
        let first = planned.partition_point(|range| range.end <= at);
        let blocks = planned[first..].iter().flat_map(|range| storage.blocks_of(entry, range.start.max(at)..range.end));
        let mut begun = Vec::new();
        for block in blocks {
            if begun.last() != Some(&block) {
                storage.fetch_ahead(&block, ());
                begun.push(block);
            }
            if begun.len() as u64 > AHEAD {
                return;
            }
        }
    }

    /// The error of an operation on it.
    pub fn failed(&self, operation: &'static str, source: io::Error) -> DataError {
        DataError::io(operation, &self.location(), source)
    }
}

impl ReadAt for Blob {
    fn length(&self) -> io::Result<u64> {
        match &*self.0 {
            Open::File(file, _) => file.length(),
            Open::Object(_, entry) => Ok(entry.size),
        }
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match &*self.0 {
            Open::File(file, _) => file.read_exact_at(bytes, offset),
            Open::Object(storage, entry) => storage.read_entry(entry, offset, bytes).map_err(io::Error::other),
        }
    }

    fn window(&self) -> usize {
        match &*self.0 {
            Open::File(file, _) => file.window(),
            Open::Object(storage, _) => (AHEAD * storage.block()) as usize,
        }
    }
}

/// A place in a file or object that moves as it is read.
#[derive(Debug)]
pub struct Stream {
    blob: Blob,
    at: u64,
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = match &*self.blob.0 {
            Open::File(file, _) => FileExt::read_at(file, bytes, self.at)?,
            Open::Object(_, entry) => {
                let left = usize::try_from(entry.size.saturating_sub(self.at)).unwrap_or(usize::MAX);
                let count = left.min(bytes.len());
                self.blob.read_at(&mut bytes[..count], self.at)?;
                count
            }
        };
        self.at += read as u64;
        Ok(read)
    }
}
