//! What `data index`, `data inspect` and `data verify` are given.

use super::{
    DataError,
    survey::{Shards, Survey},
};
use crate::storage::{Limits, Storage};
use common::recipe::{DataKind, DataPath, IndexPlace};
use std::sync::Arc;

/// Which shards, where their index is, and how to print.
#[derive(Debug, clap::Args)]
pub struct ShardsArgs {
    /// Tars, parquet files or lists of images (.json, .jsonl, .csv, .tsv), folders of them, or patterns in quotes such as
    /// 'data/*.tar' or 's3://bucket/data/*.tar'
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<DataPath>,
    /// How the shards are laid out, where their names do not say it: a parquet file may also be a list
    #[arg(long, value_enum)]
    pub kind: Option<Kind>,
    /// The column of images, or of a list's paths of images; the usual ones are tried unless given
    #[arg(long, value_name = "COLUMN")]
    pub image_column: Option<String>,
    /// The folder of a list's images; that of the list unless given
    #[arg(long, value_name = "FOLDER")]
    pub images: Option<DataPath>,
    /// Where the shards' index is kept: `beside` them, or a folder; the user's cache folder unless given
    #[arg(long, value_name = "PLACE")]
    pub index: Option<String>,
    /// How to print: lines for people, or one JSON document
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    pub output: Format,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for people.
    Text,
    /// One JSON document.
    Json,
}

/// How shards are laid out, as a recipe calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Tars.
    Webdataset,
    /// Tables that hold images.
    Parquet,
    /// Tables that name images, or folders of them.
    List,
}

impl ShardsArgs {
    /// Opens the shards; indices that are missing are made.
    pub(super) fn survey(&self) -> Result<Survey, DataError> {
        let index = match self.index.as_deref() {
            None | Some("cache") => IndexPlace::Cache,
            Some("beside") => IndexPlace::Beside,
            Some(folder) => IndexPlace::Folder(folder.into()),
        };
        let kind = self.kind.map(|kind| match kind {
            Kind::Webdataset => DataKind::Webdataset,
            Kind::Parquet => DataKind::Parquet,
            Kind::List => DataKind::List,
        });
        let shards = Shards {
            paths: self.paths.clone(),
            kind,
            image_column: self.image_column.clone(),
            images: self.images.clone(),
            index,
        };
        Survey::open(&Arc::new(Storage::from_environment(Limits::default())), &shards)
    }
}
