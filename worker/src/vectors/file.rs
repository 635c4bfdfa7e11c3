//! One shard's file, read by row.

use super::{
    Provenance, VectorsError,
    layout::{BLOCK, Head, Layout, PREFIX, has, head_length},
    v1,
};
use crate::storage::{Block, Entry, Location, Storage, StorageError};
use half::bf16;
use std::{
    cell::RefCell,
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

thread_local! {
    /// A block that is being checked.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What a reader wants a file to be.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// What its vectors were made of.
    pub provenance: &'a Provenance,
    /// How many rows it has.
    pub rows: usize,
    /// Numbers a vector; `None` takes what the file has.
    pub width: Option<usize>,
}

/// The vectors of one data shard, a file or an object. Opening reads what stands before the data; a row costs one read,
/// and the first row of a MiB a checksum over it. An object is read as it was when it was opened.
#[derive(Debug)]
pub struct ShardFile {
    storage: Arc<Storage>,
    entry: Entry,
    rows: u64,
    width: u64,
    columns: Vec<Column>,
    made_of: Provenance,
    // `None` in files of version 1.
    checks: Option<Checks>,
}

#[derive(Debug)]
struct Column {
    name: String,
    // The first byte in the file.
    start: u64,
    // `None`: every row is there.
    present: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Checks {
    layout: Layout,
    digests: Vec<[u8; 32]>,
    passed: Vec<AtomicBool>,
}

/// A block whose bytes are not those that were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedBlock {
    /// Its number in the data.
    pub block: u64,
    /// The column it begins in.
    pub column: String,
    /// The rows of that column that it holds.
    pub rows: std::ops::Range<u64>,
}

impl ShardFile {
    /// Opens a shard's vectors; `None` when there is neither this file nor one of version 1 beside it.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or is something else than expected.
    pub fn open(
        storage: &Arc<Storage>,
        location: &Location,
        expected: Expected<'_>,
    ) -> Result<Option<Self>, VectorsError> {
        match storage.stat(location) {
            Ok(entry) => return Self::open_v2(storage, &entry, expected).map(Some),
            Err(StorageError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let name = Path::new(location.name()).with_extension(super::V1_EXTENSION);
        match storage.stat(&location.sibling(&name.to_string_lossy())) {
            Ok(entry) => Self::open_v1(storage, &entry, expected).map(Some),
            Err(StorageError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn open_v2(storage: &Arc<Storage>, entry: &Entry, expected: Expected<'_>) -> Result<Self, VectorsError> {
        let damaged = |reason: String| VectorsError::Damaged { place: entry.location.to_string(), reason };
        if entry.size < PREFIX as u64 {
            return Err(damaged(format!("it has {} bytes", entry.size)));
        }
        let mut prefix = [0; PREFIX];
        storage.read_entry(entry, 0, &mut prefix)?;
        let length = head_length(&prefix, entry.size).map_err(damaged)?;
        let mut head = vec![0; length];
        storage.read_entry(entry, 0, &mut head)?;
        let Head { header, layout, present, digests } = Head::parse(&head, entry.size).map_err(damaged)?;
        let start = |column| layout.data + layout.row_start(column, 0);
        let columns = header.columns.into_iter().zip(present).enumerate();
        let columns =
            columns.map(|(at, (name, present))| Column { name, start: start(at), present: Some(present) }).collect();
        let passed = digests.iter().map(|_| AtomicBool::new(false)).collect();
        let (storage, entry) = (storage.clone(), entry.clone());
        let checks = Some(Checks { layout, digests, passed });
        let made_of = Provenance::from(header.provenance);
        let opened = Self { storage, entry, rows: header.rows, width: header.width, columns, made_of, checks };
        opened.expect(expected)
    }

    fn open_v1(storage: &Arc<Storage>, entry: &Entry, expected: Expected<'_>) -> Result<Self, VectorsError> {
        let damaged = |reason: String| VectorsError::Damaged { place: entry.location.to_string(), reason };
        if entry.size < 8 {
            return Err(damaged(format!("it has {} bytes", entry.size)));
        }
        let mut first = [0; 8];
        storage.read_entry(entry, 0, &mut first)?;
        let length = v1::header_length(first, entry.size).map_err(damaged)?;
        let mut header = vec![0; length];
        storage.read_entry(entry, 8, &mut header)?;
        let rows = expected.rows as u64;
        let tensors = v1::parse(&header, entry.size, rows).map_err(damaged)?;
        let columns = tensors.columns.into_iter().map(|(name, start)| Column { name, start, present: None }).collect();
        let (storage, entry) = (storage.clone(), entry.clone());
        let made_of = Provenance::from(tensors.metadata);
        let opened = Self { storage, entry, rows, width: tensors.width, columns, made_of, checks: None };
        opened.expect(expected)
    }

    fn expect(self, expected: Expected<'_>) -> Result<Self, VectorsError> {
        let place = || self.entry.location.to_string();
        if let Some((field, found, expected)) = expected.provenance.difference(&self.made_of) {
            return Err(VectorsError::Mismatch { place: place(), field, found, expected });
        }
        if self.rows != expected.rows as u64 {
            let (found, expected) = (self.rows, expected.rows as u64);
            return Err(VectorsError::Rows { place: place(), found, expected });
        }
        match expected.width {
            Some(expected) if expected as u64 != self.width => {
                Err(VectorsError::Width { place: place(), found: self.width(), expected })
            }
            _ => Ok(self),
        }
    }

    /// The vectors' width.
    pub fn width(&self) -> usize {
        usize::try_from(self.width).expect("a width is checked when a file is opened")
    }

    /// What its vectors were made of, as the header states it.
    pub fn made_of(&self) -> &Provenance {
        &self.made_of
    }

    /// The caption columns.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|column| column.name.as_str())
    }

    /// Reads one caption's vector into `out`, of the store's width; `false` when the shard has no such column or row, or
    /// the row is null.
    ///
    /// # Errors
    /// When it cannot be read, or its block is not what was written.
    ///
    /// # Panics
    /// When `out` has another width.
    pub fn read(&self, column: &str, row: u64, out: &mut [bf16]) -> Result<bool, VectorsError> {
        assert_eq!(out.len(), self.width(), "the buffer has the store's width");
        let Some(at) = self.start(column, row) else { return Ok(false) };
        let bytes = bytemuck::cast_slice_mut(out);
        match &self.checks {
            Some(checks) => self.read_checked(checks, at, bytes)?,
            None => self.storage.read_entry(&self.entry, at, bytes)?,
        }
        Ok(true)
    }

    /// Hands on the blocks of object storage that are read for a caption's vector; none when the shard is a file.
    pub fn blocks(&self, column: &str, row: u64, each: &mut dyn FnMut(Block)) {
        let Some(at) = self.start(column, row) else { return };
        let end = at + self.width * 2;
        let range = match &self.checks {
            // Of a checksum that was not looked at yet, all that it covers.
            Some(Checks { layout, passed, .. }) => {
                let whole = |byte: u64| {
                    let block = (byte - layout.data) / BLOCK;
                    let Range { start, end } = layout.block(block);
                    let seen = passed[block as usize].load(Ordering::Relaxed);
                    if seen { byte..byte + 1 } else { layout.data + start..layout.data + end }
                };
                whole(at).start..whole(end - 1).end
            }
            None => at..end,
        };
        self.storage.blocks_of(&self.entry, range).for_each(each);
    }

    /// What it is read through, when it lies in object storage.
    pub fn object_storage(&self) -> Option<&Arc<Storage>> {
        matches!(self.entry.location, Location::Object(_)).then_some(&self.storage)
    }

    /// The first byte of a vector; `None` when there is no such column or row, or it is null.
    fn start(&self, column: &str, row: u64) -> Option<u64> {
        let column = self.columns.iter().find(|found| found.name == column)?;
        let null = row >= self.rows || column.present.as_ref().is_some_and(|bitmap| !has(bitmap, row));
        (!null).then_some(column.start + row * self.width * 2)
    }

    /// Checks every block again, whether or not it was read before, and lists those that are damaged. `progress` gets
    /// the number of bytes after each. Files of version 1 have no checksums, and none of their blocks is found damaged.
    pub fn verify(&self, mut progress: impl FnMut(u64)) -> Result<Vec<DamagedBlock>, VectorsError> {
        let mut damaged = Vec::new();
        let Some(checks) = &self.checks else { return Ok(damaged) };
        let mut bytes = Vec::new();
        for block in 0..checks.layout.blocks() {
            if !self.block_is_whole(checks, block, &mut bytes)? {
                damaged.push(self.describe(&checks.layout, block));
            }
            progress(bytes.len() as u64);
        }
        Ok(damaged)
    }

    /// Reads bytes, and the whole of each of their blocks that was not read before.
    fn read_checked(&self, checks: &Checks, at: u64, out: &mut [u8]) -> Result<(), VectorsError> {
        let start = at - checks.layout.data;
        let end = start + out.len() as u64;
        let mut done = 0;
        while start + (done as u64) < end {
            let from = start + done as u64;
            let block = from / BLOCK;
            let count = (checks.layout.block(block).end.min(end) - from) as usize;
            let part = &mut out[done..done + count];
            done += count;
            if checks.passed[block as usize].load(Ordering::Relaxed) {
                self.storage.read_entry(&self.entry, checks.layout.data + from, part)?;
                continue;
            }
            SCRATCH.with_borrow_mut(|bytes| {
                if !self.block_is_whole(checks, block, bytes)? {
                    let DamagedBlock { column, rows, .. } = self.describe(&checks.layout, block);
                    let reason = format!(
                        "the checksum of block {block}, rows {} to {} of `{column}`, is not that of what was written",
                        rows.start, rows.end
                    );
                    return Err(VectorsError::Damaged { place: self.entry.location.to_string(), reason });
                }
                part.copy_from_slice(&bytes[(from % BLOCK) as usize..][..count]);
                checks.passed[block as usize].store(true, Ordering::Relaxed);
                Ok(())
            })?;
        }
        Ok(())
    }

    fn block_is_whole(&self, checks: &Checks, block: u64, bytes: &mut Vec<u8>) -> Result<bool, VectorsError> {
        let range = checks.layout.block(block);
        let length = (range.end - range.start) as usize;
        bytes.clear();
        bytes.resize(length, 0);
        self.storage.read_entry(&self.entry, checks.layout.data + range.start, bytes)?;
        Ok(blake3::hash(bytes) == checks.digests[block as usize])
    }

    fn describe(&self, layout: &Layout, block: u64) -> DamagedBlock {
        let range = layout.block(block);
        let column = (range.start / layout.column.max(1)) as usize;
        let inside = range.start % layout.column.max(1);
        let last = (inside + (range.end - range.start)).div_ceil(layout.row).min(self.rows);
        let name = self.columns.get(column).map_or(String::new(), |column| column.name.clone());
        DamagedBlock { block, column: name, rows: (inside / layout.row).min(last)..last }
    }
}
