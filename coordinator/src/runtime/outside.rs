//! What the loop sees of the world besides its store and its workers: the wall clock, and manifests on shared storage.

use super::bucket;
use common::{daemon::clock, recipe::is_url, time::Timestamp};
use std::{fmt, future::Future, io, path::Path, pin::Pin};
use tokio::fs;

/// An answer that may take its time.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// The world around a coordinator. [`ThisMachine`] is the real one; a simulation brings its own.
pub trait Outside: fmt::Debug + Send + Sync {
    /// What the clock on the wall shows. It may jump; nothing waits by it (see `Calendar`).
    fn wall(&self) -> Timestamp;

    /// A file of shared storage as text.
    fn read<'a>(&'a self, file: &'a Path) -> Answer<'a, String>;

    /// The names in a folder of shared storage, in any order.
    fn list<'a>(&'a self, folder: &'a Path) -> Answer<'a, Vec<String>>;

    /// Whether a file of shared storage is there.
    fn exists<'a>(&'a self, file: &'a Path) -> Answer<'a, bool>;
}

/// This machine's clock, and shared storage where it is mounted or its bucket can be reached.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThisMachine;

impl Outside for ThisMachine {
    fn wall(&self) -> Timestamp {
        clock::now()
    }

    fn read<'a>(&'a self, file: &'a Path) -> Answer<'a, String> {
        if is_url(file) { Box::pin(bucket::read(file)) } else { Box::pin(fs::read_to_string(file)) }
    }

    fn list<'a>(&'a self, folder: &'a Path) -> Answer<'a, Vec<String>> {
        if is_url(folder) {
            return Box::pin(bucket::list(folder));
        }
        Box::pin(async move {
            let mut names = Vec::new();
            let mut entries = fs::read_dir(folder).await?;
            while let Some(entry) = entries.next_entry().await? {
                names.extend(entry.file_name().into_string());
            }
            Ok(names)
        })
    }

    fn exists<'a>(&'a self, file: &'a Path) -> Answer<'a, bool> {
        if is_url(file) { Box::pin(bucket::exists(file)) } else { Box::pin(fs::try_exists(file)) }
    }
}
