//! Why vectors could not be read or written.

use crate::storage::StorageError;
use std::path::PathBuf;

/// Why vectors could not be read or written. Places are written as the user knows them, path or URL.
#[derive(Debug, thiserror::Error)]
pub enum VectorsError {
    /// The file system said no.
    #[error("could not {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Storage did not give the file's bytes.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The file is not what this program writes.
    #[error("{place} is no embedding store: {reason}; delete it and run the `embed` stage again")]
    Damaged {
        /// Which file.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// The vectors were made of something else.
    #[error(
        "the vectors in {place} were made with another {field} (they have {found}, this recipe has {expected}); \
         choose another `output`, or delete {place} to embed again"
    )]
    Mismatch {
        /// Which file.
        place: String,
        /// What differs.
        field: String,
        /// What the file has.
        found: String,
        /// What is needed.
        expected: String,
    },
    /// The vectors are of another width.
    #[error(
        "the vectors in {place} are {found} numbers wide, and those of width {expected} are needed, as the shards before \
         it or the model have them; delete {place} and run the `embed` stage again"
    )]
    Width {
        /// Which file.
        place: String,
        /// What the file has.
        found: usize,
        /// What is needed.
        expected: usize,
    },
    /// The file is of another shard, or the shard has changed.
    #[error(
        "{place} has vectors for {found} samples, and its shard has {expected}; the data has changed since it was \
         embedded: delete {place} and run the `embed` stage again"
    )]
    Rows {
        /// Which file.
        place: String,
        /// What the file has.
        found: u64,
        /// What is needed.
        expected: u64,
    },
    /// The stage `embed` did not write this shard.
    #[error("{place} is missing: the recipe needs an `embed` stage over data set `{data}` before this one")]
    Missing {
        /// Which file.
        place: String,
        /// Of which data set.
        data: String,
    },
    /// A tar of vectors cannot be used.
    #[error("{path} holds no vectors that can be used: {reason}")]
    Reference {
        /// The tar.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}
