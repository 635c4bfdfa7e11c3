//! The embedding store: the frozen LLM's vector of every caption, as bf16.
//!
//! One safetensors file per data shard, `OUTPUT/embed/DATA_SET/SHARD.safetensors`; in it one tensor `[rows, width]` per
//! caption column, rows in the order of the data set's index. The header's metadata says what the vectors depend on
//! ([`Provenance`]); a store made of something else is refused and the field that differs is named.

mod file;
mod provenance;
mod store;

pub use file::{ShardFile, write_shard};
pub use provenance::Provenance;
pub use store::VectorStore;

use std::path::{Path, PathBuf};

/// Why vectors could not be read or written.
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
    /// The file is not what this program writes.
    #[error("{path} is no embedding store: {reason}; delete it and run the `embed` stage again")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The vectors were made of something else.
    #[error(
        "the vectors in {path} were made with another {field} (they have {found}, this recipe has {expected}); \
         choose another `output`, or delete {path} to embed again"
    )]
    Mismatch {
        /// Which file.
        path: PathBuf,
        /// What differs.
        field: String,
        /// What the file has.
        found: String,
        /// What is needed.
        expected: String,
    },
    /// The stage `embed` did not write this shard.
    #[error("{path} is missing: the recipe needs an `embed` stage over data set `{data}` before this one")]
    Missing {
        /// Which file.
        path: PathBuf,
        /// Of which data set.
        data: String,
    },
}

/// Where the vectors of a data shard lie. `shard` is the data shard's file stem; `index` keeps equal stems apart.
pub fn shard_path(output: &Path, data: &str, index: usize, shard: &str) -> PathBuf {
    output.join("embed").join(data).join(format!("{index:05}-{shard}.safetensors"))
}
