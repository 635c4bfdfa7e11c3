//! Which shards paths on the command line mean, and how they are laid out.

use crate::data::{DataError, glob};
use common::{
    recipe::{Captions, DataKind, DataSet, IndexPlace, RowRange},
    sampler::Shuffle,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Which shards to look at.
#[derive(Debug, Clone, Default)]
pub struct Shards {
    /// Files, folders and patterns.
    pub paths: Vec<PathBuf>,
    /// How they are laid out; absent means that their names say it.
    pub kind: Option<DataKind>,
    /// The column of images or of their paths; absent means the first of the usual ones.
    pub image_column: Option<String>,
    /// Where a list's images are; absent means beside it.
    pub images: Option<PathBuf>,
    /// Where the index is kept.
    pub index: IndexPlace,
}

impl Shards {
    /// The shards in order, and a data set of them as a recipe would describe it, without captions.
    pub(super) fn find(&self) -> Result<(Vec<PathBuf>, DataSet), DataError> {
        let mut paths = Vec::new();
        for path in &self.paths {
            paths.extend(shards(path, self.kind)?);
        }
        let spec = DataSet {
            kind: self.kind.unwrap_or_else(|| kind_of(&paths)),
            shards: Vec::new(),
            captions: Captions { table: None, columns: Vec::new() },
            broken_limit: 1.0,
            images: self.images.clone(),
            image_column: self.image_column.clone(),
            rows: RowRange::default(),
            only: BTreeMap::new(),
            index: self.index.clone(),
            shuffle: Shuffle::Full,
        };
        Ok((paths, spec))
    }
}

/// The shards that a path on the command line means: itself, its matches, or a folder's tars, else its parquet files, else
/// the folder as a list of the images in it.
fn shards(path: &Path, kind: Option<DataKind>) -> Result<Vec<PathBuf>, DataError> {
    if !path.is_dir() {
        return glob::expand(path);
    }
    for (pattern, of) in [("*.tar", DataKind::Webdataset), ("*.parquet", DataKind::Parquet)] {
        if kind.is_none_or(|kind| kind == of) {
            match glob::expand(&path.join(pattern)) {
                Err(DataError::NoMatch { .. }) => {}
                other => return other,
            }
        }
    }
    match kind {
        None | Some(DataKind::List) => Ok(vec![path.to_owned()]),
        Some(_) => Err(DataError::NoMatch { pattern: path.join("*") }),
    }
}

/// What the names of shards say.
fn kind_of(paths: &[PathBuf]) -> DataKind {
    let all = |endings: &[&str]| {
        let known = |path: &PathBuf| {
            let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
            ending.is_some_and(|ending| endings.contains(&ending.as_str()))
        };
        !paths.is_empty() && paths.iter().all(known)
    };
    if all(&["parquet"]) {
        DataKind::Parquet
    } else if all(&["csv", "tsv", "json", "jsonl", "jsonlines", "ndjson"]) || paths.iter().any(|path| path.is_dir()) {
        DataKind::List
    } else {
        DataKind::Webdataset
    }
}
