//! What is known of a shard: where its members lie, their keys, and what is wrong with them. Found in one pass over the
//! shard, kept in a file, and believed only as long as the shard's size and time of change are those it was made of.
//!
//! The file is a container (`container.rs`) whose stream holds the samples in groups (`groups`), then where each group
//! starts and the last one ends, four bytes each: in all about 13 bytes for a sample of image, `.txt` and `.json`.

mod build;
mod groups;
mod one;
mod place;
mod rows;

pub use build::{Progress, ShardReader, Tars, in_parallel, open_all, rewrite};
pub use place::{Draft, Places};
pub use rows::{Fault, Flaw, Place, Rows};

use super::{
    DataError,
    container::{Container, ContainerError},
    source::{ReadAt, Stat},
};
use groups::{Decoder, GROUP, group_of};
use serde::{Deserialize, Serialize};
use std::{fs::File, io, ops::Range, path::PathBuf, sync::OnceLock};

/// The slot of images, always the first.
pub const IMAGE: usize = 0;

/// What the footer of an index says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footer {
    /// What was indexed: the kind of the shards and what of them was read.
    pub kind: String,
    /// The shard when it was indexed.
    pub shard: Stat,
    /// Samples, broken ones included.
    pub rows: u32,
    /// What samples have, images first.
    pub slots: Vec<SlotFooter>,
    /// Members that were there already; the first of a name counts.
    pub duplicates: u64,
    /// The keys of the first of them.
    pub duplicate_examples: Vec<String>,
    /// What is wrong with the shard as a whole.
    pub fault: Option<Fault>,
    /// BLAKE3 in hex over keys, members' lengths, texts, and the last bytes of images.
    pub fingerprint: String,
    /// Whether all images were decoded, and those that cannot be are among the flaws.
    pub verified: bool,
}

/// A slot, and what is wrong in it by row, each list ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotFooter {
    /// `image`, `txt`, `json`, `cls`.
    pub name: String,
    /// Rows by flaw.
    pub flaws: std::collections::BTreeMap<Flaw, Vec<u32>>,
}

/// A file that is opened when it is first read and again after that, or bytes in memory.
pub enum Store {
    /// A file. It is opened for each read unless it is kept: a data set may have a hundred thousand of them.
    File(PathBuf, OnceLock<File>),
    /// Bytes that could not be written anywhere.
    Memory(Vec<u8>),
}

/// How many indices of a data set keep their file open.
pub const KEPT_OPEN: usize = 256;

impl ReadAt for Store {
    fn length(&self) -> io::Result<u64> {
        match self {
            Self::File(path, kept) => kept.get().map_or_else(|| Ok(std::fs::metadata(path)?.len()), ReadAt::length),
            Self::Memory(bytes) => bytes.length(),
        }
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(path, kept) => match kept.get() {
                Some(file) => file.read_at(bytes, offset),
                None => File::open(path)?.read_at(bytes, offset),
            },
            Self::Memory(memory) => memory.read_at(bytes, offset),
        }
    }
}

/// A shard's index, open.
pub struct ShardIndex {
    container: Container<Store>,
    footer: Footer,
}

impl std::fmt::Debug for ShardIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardIndex").field("footer", &self.footer).finish_non_exhaustive()
    }
}

impl ShardIndex {
    /// Opens an index and checks that its parts agree.
    pub fn open(store: Store) -> Result<Self, ContainerError> {
        let (container, footer) = Container::open::<Footer>(store)?;
        let index = Self { container, footer };
        let fixed = index.starts_length();
        let in_order = |rows: &[u32]| rows.is_sorted_by(|a, b| a < b) && rows.last() < Some(&index.footer.rows);
        let flaws_fit = index.footer.slots.iter().all(|slot| slot.flaws.values().all(|rows| in_order(rows)));
        let has_images = index.footer.slots.first().is_some_and(|slot| slot.name == "image");
        if !flaws_fit || !has_images || index.footer.slots.len() > 64 || index.container.length() < fixed {
            return Err(ContainerError::Inconsistent);
        }
        Ok(index)
    }

    /// What the footer says.
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// Whether it lies in a file; else it could not be written, and is gone when the process ends.
    pub fn is_kept(&self) -> bool {
        matches!(self.container.source(), Store::File(..))
    }

    /// Bytes of the index itself, pages and footer without their checksums' and trailer's.
    pub fn length(&self) -> u64 {
        self.container.length()
    }

    /// Reads all of it once.
    pub fn check(&self) -> Result<(), ContainerError> {
        self.container.check()
    }

    /// Keeps the file open from now on; a file that cannot be opened now is opened, or is an error, when it is read.
    pub fn keep_open(&self) {
        if let Store::File(path, kept) = self.container.source() {
            let _ = File::open(path).map(|file| kept.set(file));
        }
    }

    /// A slot's place by its name.
    pub fn slot(&self, name: &str) -> Option<usize> {
        self.footer.slots.iter().position(|slot| slot.name == name)
    }

    /// Where a row's member lies; `None` when the row has none.
    ///
    /// # Panics
    /// When there is no such row or slot.
    pub fn place(&self, row: u32, slot: usize) -> Result<Option<Place>, DataError> {
        assert!(slot < self.footer.slots.len(), "slot {slot} of an index");
        self.row(row, |_, places| places[slot])
    }

    /// A row's key.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn key(&self, row: u32) -> Result<String, DataError> {
        self.row(row, |key, _| key.to_owned())
    }

    /// Hands on all keys in order.
    pub fn keys(&self, mut each: impl FnMut(&str)) -> Result<(), DataError> {
        let mut bytes = Vec::new();
        for first in (0..self.footer.rows).step_by(GROUP as usize) {
            let rows = self.group(first, &mut bytes)?;
            let mut decoder = Decoder::new(&bytes, self.footer.slots.len());
            for _ in rows {
                decoder.next().ok_or_else(|| self.damaged(ContainerError::Inconsistent))?;
                each(&decoder.key);
            }
        }
        Ok(())
    }

    fn row<T>(&self, row: u32, take: impl FnOnce(&str, &[Option<Place>]) -> T) -> Result<T, DataError> {
        assert!(row < self.footer.rows, "row {row} of an index");
        let mut bytes = Vec::new();
        let rows = self.group(row, &mut bytes)?;
        let mut decoder = Decoder::new(&bytes, self.footer.slots.len());
        for _ in rows.start..=row {
            decoder.next().ok_or_else(|| self.damaged(ContainerError::Inconsistent))?;
        }
        Ok(take(&decoder.key, &decoder.places))
    }

    /// Reads the group that a row is in, and says which rows it has.
    fn group(&self, row: u32, bytes: &mut Vec<u8>) -> Result<Range<u32>, DataError> {
        let (number, rows) = group_of(row, self.footer.rows);
        let starts = self.container.length() - self.starts_length();
        self.read(starts + u64::from(number) * 4, 8, bytes)?;
        let at = |from: usize| u64::from(u32::from_le_bytes(std::array::from_fn(|i| bytes[from + i])));
        let (start, end) = (at(0), at(4));
        if start > end || end > starts {
            return Err(self.damaged(ContainerError::Inconsistent));
        }
        self.read(start, end - start, bytes)?;
        Ok(rows)
    }

    /// Bytes of the starts of all groups, and of the last one's end.
    fn starts_length(&self) -> u64 {
        (u64::from(self.footer.rows.div_ceil(GROUP)) + 1) * 4
    }

    fn read(&self, at: u64, length: u64, bytes: &mut Vec<u8>) -> Result<(), DataError> {
        self.container.read(at, length, bytes).map_err(|error| self.damaged(error))
    }

    fn damaged(&self, error: ContainerError) -> DataError {
        let path = match self.container.source() {
            Store::File(path, _) => path.clone(),
            Store::Memory(_) => PathBuf::from("an index in memory"),
        };
        DataError::DamagedIndex { path: path.into(), reason: error.to_string() }
    }
}
