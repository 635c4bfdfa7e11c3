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
use crate::storage::{Block, Location};

/// The images of a data set.
#[derive(Debug)]
pub enum Images {
    /// Members of tars.
    Tars,
    /// Rows of parquet files.
    Parquets(ParquetImages),
    /// Files or objects, named by the samples' keys, in a folder for each shard.
    Folders(Vec<Location>),
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
            let reason = || format!("row {row} has no image");
            place.ok_or_else(|| DataError::DamagedIndex { path: files.location(shard), reason: reason() })
        };
        match self {
            Self::Tars => {
                let extent = place(index.place(row, IMAGE)?)?.extent();
                files.read(shard, extent.offset, extent.length as usize, bytes)
            }
            Self::Parquets(images) => images.read(files, shard, place(index.place(row, IMAGE)?)?.row(), bytes),
            Self::Folders(folders) => {
                let location = folders[shard as usize].join(&index.key(row)?)?;
                Ok(files.storage().read_all(&location, bytes)?)
            }
        }
    }

    /// Whether any image lies in object storage.
    pub fn in_objects(&self, files: &Files) -> bool {
        match self {
            Self::Tars | Self::Parquets(_) => files.has_objects(),
            // A row may name an object whatever the folder is.
            Self::Folders(folders) => folders.iter().any(|folder| matches!(folder, Location::Object(_))),
        }
    }

    /// Hands on the blocks of object storage that an image lies in; none when it lies in a file. Of an object of its own it is the first:
    /// how long it is, is not known.
    pub fn blocks(
        &self,
        files: &Files,
        shard: u32,
        index: &ShardIndex,
        row: u32,
        each: &mut dyn FnMut(Block),
    ) -> Result<(), DataError> {
        match self {
            Self::Tars => {
                if let Some(extent) = index.place(row, IMAGE)?.map(Place::extent) {
                    files.blocks(shard, extent.offset..extent.offset + extent.length, each);
                }
            }
            Self::Parquets(images) => {
                if let Some(place) = index.place(row, IMAGE)? {
                    files.blocks(shard, images.bytes_of(files, shard, place.row())?, each);
                }
            }
            Self::Folders(folders) => {
                let location = folders[shard as usize].join(&index.key(row)?)?;
                files.storage().first_block(&location).into_iter().for_each(each);
            }
        }
        Ok(())
    }
}
