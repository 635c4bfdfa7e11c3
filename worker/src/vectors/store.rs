//! All vectors of one data set.

use super::{Provenance, ShardFile, VectorsError, file, shard_path};
use half::bf16;
use std::{ops::Range, path::Path};

/// The vectors of a data set, by sample and caption column.
#[derive(Debug)]
pub struct VectorStore {
    shards: Vec<(Range<u64>, ShardFile)>,
    width: usize,
}

impl VectorStore {
    /// Opens the vectors of every shard. `shards` are the data shards' stems and sample ranges, in index order.
    ///
    /// # Errors
    /// When a shard was never embedded, is damaged, or was made of something else than `provenance`.
    pub fn open<'a>(
        output: &Path,
        data: &str,
        shards: impl IntoIterator<Item = (&'a str, Range<u64>)>,
        provenance: &Provenance,
    ) -> Result<Self, VectorsError> {
        let mut opened = Vec::new();
        for (index, (stem, range)) in shards.into_iter().enumerate() {
            let path = shard_path(output, data, index, stem);
            let rows = usize::try_from(range.end - range.start).expect("a shard's rows fit in memory");
            if rows == 0 {
                continue;
            }
            let shard = ShardFile::open(&path, provenance, rows)?.ok_or_else(|| file::missing(path, data))?;
            opened.push((range, shard));
        }
        let width = opened.first().map_or(0, |(_, shard)| shard.width());
        Ok(Self { shards: opened, width })
    }

    /// The vectors' width D.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The vector of a sample's caption; `None` when there is none.
    pub fn get(&self, sample: u64, column: &str) -> Option<&[bf16]> {
        let at = self.shards.partition_point(|(range, _)| range.end <= sample);
        let (range, shard) = self.shards.get(at)?;
        let row = sample.checked_sub(range.start)?;
        shard.row(column, usize::try_from(row).ok()?)
    }
}
