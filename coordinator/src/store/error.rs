//! What can go wrong with a store.

use super::contract::{LeaseId, Revision};
use std::path::PathBuf;

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The key is not as the caller believed: someone else wrote it.
    #[error("{key} is at {}, not at {}: someone else changed it", shown(*found), shown(*expected))]
    Conflict {
        /// Which key.
        key: String,
        /// The revision that the caller believed in; absent means that the key must not exist.
        expected: Option<Revision>,
        /// The revision it has; absent means that it does not exist.
        found: Option<Revision>,
    },
    /// The lease lapsed, was revoked, or never was.
    #[error("lease {0} does not exist (any more)")]
    NoLease(LeaseId),
    /// The changes that a watch asks for are no longer kept.
    #[error("changes after revision {after} are no longer kept, the oldest is {oldest}: list again and watch from there")]
    Compacted {
        /// What was asked for.
        after: Revision,
        /// The oldest change that is kept.
        oldest: Revision,
    },
    /// Another process has the file open.
    #[error(
        "{} is open in another process: one coordinator at a time; end that one, or point this one to another folder",
        .0.display()
    )]
    InUse(PathBuf),
    /// The file was written by another version.
    #[error("{} has format {found}, this program reads format 1: update llm2clip", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// Its format.
        found: u64,
    },
    /// The file or its folder cannot be used.
    #[error("cannot {operation} {}: {source}", file.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        file: PathBuf,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store's thread is gone; the program is ending.
    #[error("the store is closed")]
    Closed,
}

fn shown(revision: Option<Revision>) -> String {
    revision.map_or_else(|| "no revision".to_owned(), |revision| format!("revision {revision}"))
}
