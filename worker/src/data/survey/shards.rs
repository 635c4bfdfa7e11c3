//! Which shards paths on the command line mean, and how they are laid out.

use crate::{
    data::{DataError, blob::Found, glob},
    storage::{Location, Storage},
};
use common::{
    recipe::{Captions, DataKind, DataPath, DataSet, IndexPlace, RowRange},
    sampler::Shuffle,
};
use std::collections::BTreeMap;

/// Which shards to look at.
#[derive(Debug, Clone, Default)]
pub struct Shards {
    /// Files, objects, folders and patterns.
    pub paths: Vec<DataPath>,
    /// How they are laid out; absent means that their names say it.
    pub kind: Option<DataKind>,
    /// The column of images or of their paths; absent means the first of the usual ones.
    pub image_column: Option<String>,
    /// Where a list's images are; absent means beside it.
    pub images: Option<DataPath>,
    /// Where the index is kept.
    pub index: IndexPlace,
}

impl Shards {
    /// The shards in order, and a data set of them as a recipe would describe it, without captions.
    pub(super) fn find(&self, storage: &Storage) -> Result<(Vec<Found>, DataSet), DataError> {
        let mut found = Vec::new();
        for path in &self.paths {
            found.extend(shards(storage, path, self.kind)?);
        }
        let spec = DataSet {
            kind: self.kind.unwrap_or_else(|| kind_of(&found)),
            shards: Vec::new(),
            captions: Captions { table: None, columns: Vec::new() },
            broken_limit: 1.0,
            images: self.images.clone(),
            image_column: self.image_column.clone(),
            rows: RowRange::default(),
            only: BTreeMap::new(),
            index: self.index.clone(),
            vectors: None,
            benchmark: None,
            classes: None,
            shuffle: Shuffle::Full,
        };
        Ok((found, spec))
    }
}

/// The shards that a path or URL on the command line means: itself, its matches, or a folder's tars, else its parquet files,
/// else the folder as a list of the images in it. An URL is a folder's when its last part has no ending.
fn shards(storage: &Storage, given: &DataPath, kind: Option<DataKind>) -> Result<Vec<Found>, DataError> {
    let inside = |pattern: &str| -> DataPath {
        match given {
            DataPath::Path(folder) => folder.join(pattern).into(),
            DataPath::Url(folder) => DataPath::Url(format!("{}/{pattern}", folder.trim_end_matches('/'))),
        }
    };
    let is_folder = match given {
        DataPath::Path(path) => path.is_dir(),
        DataPath::Url(url) => !url.rsplit('/').next().unwrap_or_default().contains(['.', '*', '?']),
    };
    if !is_folder {
        return glob::expand(storage, given);
    }
    let mut missed = None;
    for (pattern, of) in [("*.tar", DataKind::Webdataset), ("*.parquet", DataKind::Parquet)] {
        if kind.is_none_or(|kind| kind == of) {
            match glob::expand(storage, &inside(pattern)) {
                Err(none @ DataError::NoMatch { .. }) => missed = missed.or(Some(none)),
                other => return other,
            }
        }
    }
    match (given, kind, missed) {
        // Images in a folder of an object store are listed by a file.
        (DataPath::Path(folder), None | Some(DataKind::List), _) => Ok(vec![Found::File(folder.clone())]),
        (_, _, Some(none)) => Err(none),
        (_, _, None) => glob::expand(storage, given),
    }
}

/// What the names of shards say.
fn kind_of(found: &[Found]) -> DataKind {
    let names: Vec<Location> = found.iter().map(Found::location).collect();
    let ending = |name: &Location| name.name().rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    let all = |endings: &[&str]| {
        let known = |name: &Location| ending(name).is_some_and(|ending| endings.contains(&ending.as_str()));
        !names.is_empty() && names.iter().all(known)
    };
    let is_folder = |found: &Found| matches!(found, Found::File(path) if path.is_dir());
    if all(&["parquet"]) {
        DataKind::Parquet
    } else if all(&["csv", "tsv", "json", "jsonl", "jsonlines", "ndjson"]) || found.iter().any(is_folder) {
        DataKind::List
    } else {
        DataKind::Webdataset
    }
}
