//! Tests over several files of `vectors`.

mod imports;
mod shards;

use super::{Expected, Provenance, ShardFile, VectorsError};
use crate::storage::{Limits, Storage};
use half::bf16;
use std::{path::Path, sync::Arc};

fn storage() -> Arc<Storage> {
    Arc::new(Storage::new(Limits::default(), []))
}

fn provenance(pooling: &str) -> Provenance {
    Provenance::named([("pooling", pooling)])
}

fn numbers(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|v| bf16::from_f32(*v)).collect()
}

fn open(path: &Path, rows: usize, width: Option<usize>) -> Result<Option<ShardFile>, VectorsError> {
    let provenance = provenance("mean");
    ShardFile::open(&storage(), &path.to_owned().into(), Expected { provenance: &provenance, rows, width })
}

/// A row of a shard, or `None` when it is null or not there.
fn row(shard: &ShardFile, column: &str, row: u64) -> Option<Vec<bf16>> {
    let mut out = vec![bf16::ZERO; shard.width()];
    shard.read(column, row, &mut out).unwrap().then_some(out)
}
