//! Where a sample's image comes from: a range of bytes of a tar, a row of a parquet file, or a file of its own.

pub mod folder;
mod list;
mod parquet;
#[cfg(test)]
mod tests;

pub use list::Lists;
pub use parquet::{ParquetImages, Parquets};

use super::{
    DataError,
    files::Files,
    index::{IMAGE, Place, ShardIndex},
};
use std::path::PathBuf;

/// The images of a data set.
#[derive(Debug)]
pub enum Images {
    /// Members of tars.
    Tars,
    /// Rows of parquet files.
    Parquets(ParquetImages),
    /// Files, named by the samples' keys, in a folder for each shard.
    Folders(Vec<PathBuf>),
}

impl Images {
    /// Reads an image's bytes into `bytes`, whose contents are replaced.
    pub fn read(
        &self,
        files: &Files,
        shard: u32,
        index: &ShardIndex,
        row: u32,
        bytes: &mut Vec<u8>,
    ) -> Result<(), DataError> {
        let place = |place: Option<Place>| {
            let path = files.path(shard).to_owned();
            place.ok_or_else(|| DataError::DamagedIndex { path, reason: format!("row {row} has no image") })
        };
        match self {
            Self::Tars => {
                let extent = place(index.place(row, IMAGE)?)?.extent();
                files.read(shard, extent.offset, extent.length as usize, bytes)
            }
            Self::Parquets(images) => images.read(files, shard, place(index.place(row, IMAGE)?)?.row(), bytes),
            Self::Folders(folders) => {
                let path = folders[shard as usize].join(index.key(row)?);
                bytes.clear();
                let read = std::fs::File::open(&path).and_then(|mut file| std::io::Read::read_to_end(&mut file, bytes));
                read.map(|_| ()).map_err(|source| DataError::Io { operation: "read", path, source })
            }
        }
    }
}
