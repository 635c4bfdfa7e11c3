//! All vectors of one data set.

use super::{Expected, Provenance, ShardFile, VectorsError, shard_name};
use crate::storage::{Block, Location, Storage};
use half::bf16;
use std::{ops::Range, sync::Arc};

/// The vectors of a data set, by sample and caption column.
#[derive(Debug)]
pub struct VectorStore {
    shards: Vec<(Range<u64>, ShardFile)>,
    width: usize,
}

impl VectorStore {
    /// Opens the vectors of every shard in a folder; reads none. `shards` are the data shards' stems and sample ranges, in
    /// index order.
    ///
    /// # Errors
    /// When a shard was never embedded, is damaged, was made of something else than `provenance` or than the first, or is
    /// of another width than the first.
    pub fn open<'a>(
        storage: &Arc<Storage>,
        folder: &Location,
        data: &str,
        shards: impl IntoIterator<Item = (&'a str, Range<u64>)>,
        provenance: &Provenance,
    ) -> Result<Self, VectorsError> {
        let mut opened: Vec<(Range<u64>, ShardFile)> = Vec::new();
        for (index, (stem, range)) in shards.into_iter().enumerate() {
            let location = folder.join(&shard_name(index, stem))?;
            let rows = usize::try_from(range.end - range.start).expect("a shard's rows fit in memory");
            if rows == 0 {
                continue;
            }
            let first = opened.first().map(|(_, shard)| shard);
            let (width, provenance) = (first.map(ShardFile::width), first.map_or(provenance, ShardFile::made_of));
            let shard = ShardFile::open(storage, &location, Expected { provenance, rows, width })?;
            let shard =
                shard.ok_or_else(|| VectorsError::Missing { place: location.to_string(), data: data.to_owned() })?;
            opened.push((range, shard));
        }
        let width = opened.first().map_or(0, |(_, shard)| shard.width());
        Ok(Self { shards: opened, width })
    }

    /// The vectors' width D.
    pub fn width(&self) -> usize {
        self.width
    }

    /// What they were made of; absent when there are none.
    pub fn made_of(&self) -> Option<&Provenance> {
        self.shards.first().map(|(_, shard)| shard.made_of())
    }

    /// Reads the vector of a sample's caption into `out`, of width D; `false` when there is none.
    ///
    /// # Errors
    /// As [`ShardFile::read`].
    pub fn read(&self, sample: u64, column: &str, out: &mut [bf16]) -> Result<bool, VectorsError> {
        match self.place(sample) {
            Some((shard, row)) => shard.read(column, row, out),
            None => Ok(false),
        }
    }

    /// Hands on the blocks of object storage that are read for the vector of a sample's caption; none when it lies in a file.
    pub fn blocks(&self, sample: u64, column: &str, each: &mut dyn FnMut(Block)) {
        if let Some((shard, row)) = self.place(sample) {
            shard.blocks(column, row, each);
        }
    }

    /// What the vectors are read through, when they lie in object storage.
    pub fn object_storage(&self) -> Option<&Arc<Storage>> {
        self.shards.iter().find_map(|(_, shard)| shard.object_storage())
    }

    /// The shard that has a sample, and the sample's row there.
    fn place(&self, sample: u64) -> Option<(&ShardFile, u64)> {
        let at = self.shards.partition_point(|(range, _)| range.end <= sample);
        let (range, shard) = self.shards.get(at)?;
        Some((shard, sample.checked_sub(range.start)?))
    }

    /// The shards' files, in index order; those without samples have none.
    pub fn shards(&self) -> impl Iterator<Item = &ShardFile> {
        self.shards.iter().map(|(_, shard)| shard)
    }
}
