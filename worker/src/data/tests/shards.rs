//! Tars made in memory, and data sets of them.

use crate::storage::{Limits, Storage};
use common::{
    recipe::{CaptionColumn, Captions, DataKind, DataSet, IndexPlace, RowRange},
    sampler::Shuffle,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Storage of its own, without any variable of the environment.
pub fn storage() -> Arc<Storage> {
    Arc::new(Storage::new(Limits::default(), []))
}

/// The repository's `tests` folder.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests")
}

/// The bytes of one of the golden images.
pub fn image(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join("golden/data/images").join(name)).unwrap()
}

/// A tar's header and body, padded.
pub fn member(name: &str, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut block = vec![0u8; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{:011o}", body.len()).as_bytes());
    block[148..156].fill(b' ');
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block.extend(body);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

/// A tar of regular files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes: Vec<u8> = files.iter().flat_map(|(name, body)| member(name, b'0', body)).collect();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// A data set of the tars in a folder, captioned by `.txt`; its index is kept beside them in `index`.
pub fn spec(folder: &Path, broken_limit: f64) -> DataSet {
    DataSet {
        kind: DataKind::Webdataset,
        shards: vec![folder.join("*.tar").into()],
        captions: Captions { table: None, columns: columns(&[(".txt", 1)]) },
        broken_limit,
        images: None,
        image_column: None,
        rows: RowRange::default(),
        only: BTreeMap::new(),
        index: IndexPlace::Folder(folder.join("index")),
        vectors: None,
        benchmark: None,
        classes: None,
        shuffle: Shuffle::Full,
    }
}

/// Caption columns with their weights.
pub fn columns(columns: &[(&str, u32)]) -> Vec<CaptionColumn> {
    columns.iter().map(|(name, weight)| CaptionColumn { name: (*name).to_owned(), weight: *weight }).collect()
}
