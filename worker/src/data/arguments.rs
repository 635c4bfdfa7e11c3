//! What `data index`, `data inspect` and `data verify` are given.

use super::{
    DataError,
    storage::{Limits, Storage},
    survey::Survey,
};
use common::recipe::{DataPath, IndexPlace};
use std::sync::Arc;

/// Which shards, where their index is, and how to print.
#[derive(Debug, clap::Args)]
pub struct ShardsArgs {
    /// Tars or parquet files, folders of them, or patterns in quotes such as 'data/*.tar' or 's3://bucket/data/*.tar'
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<DataPath>,
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

impl ShardsArgs {
    /// Opens the shards; indices that are missing are made.
    pub(super) fn survey(&self) -> Result<Survey, DataError> {
        let place = match self.index.as_deref() {
            None | Some("cache") => IndexPlace::Cache,
            Some("beside") => IndexPlace::Beside,
            Some(folder) => IndexPlace::Folder(folder.into()),
        };
        Survey::open(&Arc::new(Storage::from_environment(Limits::default())), &self.paths, &place)
    }
}
