//! Bytes by position: what tars, indices and tables are read from.

use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
};

/// Something of a known length whose bytes can be read anywhere, by several threads at once.
pub trait ReadAt: Send + Sync {
    /// How many bytes there are.
    fn length(&self) -> io::Result<u64>;

    /// Fills `bytes` from `offset` on; an error when they are not all there.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stat {
    /// Bytes.
    pub size: u64,
    /// When it was last written, in nanoseconds since 1970.
    pub modified_ns: i64,
}

impl Stat {
    /// Of an open or named file.
    pub fn of(metadata: &Metadata) -> Self {
        let modified_ns = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
        Self { size: metadata.len(), modified_ns }
    }
}
