//! Bytes by position: what tars, indices and tables are read from.

use crate::storage::Entry;
use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
};

/// Bytes that a walk reads at a time where reading is cheap: a caption, metadata and their headers.
const WINDOW: usize = 8192;

/// Something of a known length whose bytes can be read anywhere, by several threads at once.
pub trait ReadAt: Send + Sync {
    /// How many bytes there are.
    fn length(&self) -> io::Result<u64>;

    /// Fills `bytes` from `offset` on; an error when they are not all there.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// How many bytes are best read at a time by who goes through all of it.
    fn window(&self) -> usize {
        WINDOW
    }
}

impl ReadAt for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }
}

impl ReadAt for Vec<u8> {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let there = usize::try_from(offset).ok().and_then(|from| self.get(from..)?.get(..bytes.len()));
        bytes.copy_from_slice(there.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }
}

/// By what a shard is known to be the one that was indexed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stat {
    /// Bytes.
    pub size: u64,
    /// What changes with its contents.
    #[serde(flatten)]
    pub version: Version,
}

/// What changes when the contents of a file or object do.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Version {
    /// When a file was last written, in nanoseconds since 1970.
    #[serde(rename = "modified_ns")]
    Modified(i64),
    /// An object's ETag, or its time where the store has none.
    #[serde(rename = "object")]
    Object(String),
}

impl Stat {
    /// Of an open or named file.
    pub fn of(metadata: &Metadata) -> Self {
        let modified_ns = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
        Self { size: metadata.len(), version: Version::Modified(modified_ns) }
    }

    /// Of an object that was looked at.
    pub fn of_object(entry: &Entry) -> Self {
        Self { size: entry.size, version: Version::Object(entry.version.clone()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_is_written_as_indices_have_it() {
        for (stat, json) in [
            (Stat { size: 3, version: Version::Modified(-5) }, r#"{"size":3,"modified_ns":-5}"#),
            (Stat { size: 3, version: Version::Object("\"e\"".to_owned()) }, r#"{"size":3,"object":"\"e\""}"#),
        ] {
            assert_eq!(serde_json::to_string(&stat).unwrap(), json);
            assert_eq!(serde_json::from_str::<Stat>(json).unwrap(), stat);
        }
    }
}
