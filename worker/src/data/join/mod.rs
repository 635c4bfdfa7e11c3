//! Captions that no range of bytes gives: fields of metadata, columns of shards of rows, and rows of a caption table that are
//! joined by key, URL or digest. They are computed once, and kept in one file in the order of the samples.
//!
//! The file is a container (`container.rs`). Its stream holds the records of texts as they came, then for each sample where
//! its own record and its row's record lie, then where the records of rows without a sample lie, then a byte for each
//! sample that says whether it is used. What it belongs to (all shards' fingerprints, the table's files, columns and
//! policy) is hashed into its name: another input is another file.

mod build;
mod coverage;
mod gathered;
mod own;
#[cfg(test)]
mod tests;

pub use build::{Plan, TablePlan, Wanted, open, own_fields};
pub use coverage::Coverage;
pub use gathered::{Gathered, GatheringTars};
pub use own::{OwnFields, RowColumns, TarMetadata};

use super::{
    DataError, SkipReason,
    container::{Container, ContainerError},
    index::Store,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A text's length that stands for no text.
const NONE: u32 = u32::MAX;

/// What the footer of a join says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Footer {
    /// The hash of everything that it was computed from.
    pub identity: String,
    /// Samples.
    pub rows: u64,
    /// Texts in a sample's own record.
    pub own_columns: u32,
    /// Texts in a record of the table.
    pub table_columns: u32,
    /// Rows of the table that are kept without a sample.
    pub unpaired: u64,
    /// How many bytes of records the stream begins with.
    pub records: u64,
    /// How samples and rows met.
    pub coverage: Option<Coverage>,
    /// BLAKE3 in hex over all texts and the samples that they belong to.
    pub fingerprint: String,
}

/// Whether a sample is used, one byte in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is.
    Used,
    /// It is broken.
    Broken(SkipReason),
    /// The recipe leaves it out.
    LeftOut,
}

impl State {
    fn byte(self) -> u8 {
        match self {
            Self::Used => 0,
            Self::LeftOut => 1,
            Self::Broken(SkipReason::NoRow) => 2,
            Self::Broken(SkipReason::NoJoinField) => 3,
            Self::Broken(_) => 4,
        }
    }

    fn of(byte: u8) -> Self {
        match byte {
            0 => Self::Used,
            1 => Self::LeftOut,
            2 => Self::Broken(SkipReason::NoRow),
            3 => Self::Broken(SkipReason::NoJoinField),
            _ => Self::Broken(SkipReason::EmptyCaption),
        }
    }
}

/// Where a text comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// The sample's own metadata.
    Own,
    /// The sample's row in the table.
    Table,
}

/// A join, open. A text costs three reads of a page, however large the table was.
pub struct Joined {
    container: Container<Store>,
    footer: Footer,
}

impl std::fmt::Debug for Joined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Joined").field("footer", &self.footer).finish_non_exhaustive()
    }
}

impl Joined {
    fn open(store: Store) -> Result<Self, ContainerError> {
        let (container, footer) = Container::open::<Footer>(store)?;
        let rows = footer.rows.checked_mul(17).and_then(|bytes| bytes.checked_add(footer.unpaired.checked_mul(8)?));
        if rows.and_then(|bytes| bytes.checked_add(footer.records)) != Some(container.length()) {
            return Err(ContainerError::Inconsistent);
        }
        let joined = Self { container, footer };
        if let Store::File(path, kept) = joined.container.source() {
            let file = std::fs::File::open(path)?;
            kept.get_or_init(|| file);
        }
        Ok(joined)
    }

    /// What the footer says.
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// A text of a sample; `None` when it has none.
    ///
    /// # Panics
    /// When there is no such sample or column.
    pub fn text(&self, row: u64, from: From, column: u32) -> Result<Option<String>, DataError> {
        let (columns, section) = match from {
            From::Own => (self.footer.own_columns, 0),
            From::Table => (self.footer.table_columns, self.footer.rows * 8),
        };
        assert!(row < self.footer.rows && column < columns, "row {row}, column {column} of a join");
        let at = self.number(self.footer.records + section + row * 8)?;
        at.checked_sub(1).map_or(Ok(None), |at| self.record(at, columns, column))
    }

    /// A text of a row that has no sample.
    ///
    /// # Panics
    /// When there is no such row or column.
    pub fn unpaired(&self, row: u64, column: u32) -> Result<Option<String>, DataError> {
        assert!(row < self.footer.unpaired && column < self.footer.table_columns, "row {row}, column {column}");
        let at = self.number(self.footer.records + self.footer.rows * 16 + row * 8)?;
        self.record(at.saturating_sub(1), self.footer.table_columns, column)
    }

    /// Whether samples are used, in their order.
    pub fn states(&self, rows: std::ops::Range<u64>) -> Result<impl Iterator<Item = State> + use<>, DataError> {
        let at = self.footer.records + self.footer.rows * 16 + self.footer.unpaired * 8;
        let mut bytes = Vec::new();
        self.read(at + rows.start, rows.end - rows.start, &mut bytes)?;
        Ok(bytes.into_iter().map(State::of))
    }

    fn record(&self, at: u64, columns: u32, column: u32) -> Result<Option<String>, DataError> {
        let mut bytes = Vec::new();
        self.read(at, u64::from(columns) * 4, &mut bytes)?;
        let mut lengths = bytes.chunks_exact(4).map(|four| u32::from_le_bytes(four.try_into().expect("four bytes")));
        let before: u64 = lengths.by_ref().take(column as usize).filter(|n| *n != NONE).map(u64::from).sum();
        let Some(length) = lengths.next().filter(|length| *length != NONE) else { return Ok(None) };
        self.read(at + u64::from(columns) * 4 + before, u64::from(length), &mut bytes)?;
        String::from_utf8(bytes).map(Some).map_err(|_| self.damaged(&ContainerError::Inconsistent))
    }

    fn number(&self, at: u64) -> Result<u64, DataError> {
        let mut bytes = Vec::new();
        self.read(at, 8, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes.as_slice().try_into().expect("eight bytes were read")))
    }

    fn read(&self, at: u64, length: u64, bytes: &mut Vec<u8>) -> Result<(), DataError> {
        self.container.read(at, length, bytes).map_err(|error| self.damaged(&error))
    }

    fn damaged(&self, error: &ContainerError) -> DataError {
        let path = match self.container.source() {
            Store::File(path, _) => path.clone(),
            Store::Memory(_) => PathBuf::from("a join in memory"),
        };
        DataError::DamagedIndex { path: path.into(), reason: error.to_string() }
    }
}
