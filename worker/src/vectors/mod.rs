//! The embedding store: the frozen LLM's vector of every caption, as bf16; and beside it, where the recipe has a teacher, the teacher's.
//!
//! One file per data shard, `OUTPUT/embed/DATA_SET/SHARD.vectors`; in it per caption column a vector a row, rows in the
//! order of the data set's index, and which of them are null (`layout`). The header says what the vectors depend on
//! ([`Provenance`]); a store made of something else is refused and the field that differs is named. Rows are read by
//! position and checked against a checksum the first time (`file`); nothing is loaded. Files of version 1 are still
//! read (`v1`). LLM2CLIP's own `X_text_embeddings.tar` can be made into such a file (`reference`).

mod error;
mod file;
mod layout;
mod provenance;
mod reference;
mod store;
#[cfg(test)]
mod tests;
mod v1;
mod writer;

pub use error::VectorsError;
pub use file::{DamagedBlock, Expected, ShardFile};
#[doc(hidden)]
pub use layout::sign;
pub use provenance::Provenance;
pub use reference::{ImportReport, Named, import};
pub use store::VectorStore;
pub use writer::{ShardWriter, write_shard};

use std::path::{Path, PathBuf};

/// The ending of files of version 1.
const V1_EXTENSION: &str = "safetensors";

/// Where a job keeps the vectors of a data set.
pub fn shard_folder(output: &Path, data: &str) -> PathBuf {
    output.join("embed").join(data)
}

/// Where a job keeps what the teacher makes of a data set's captions.
pub fn taught_folder(output: &Path, data: &str) -> PathBuf {
    output.join("embed-teacher").join(data)
}

/// The column in which the n-th caption of a sample has its vector: of several captions (`caption[*]`) each has a column of
/// its own, `caption[0]`, `caption[1]` …; any other column has one caption.
pub fn nth(column: &str, n: usize) -> String {
    column.strip_suffix("[*]").map_or_else(|| column.to_owned(), |name| format!("{name}[{n}]"))
}

/// The file of a data shard's vectors there. `shard` is the data shard's file stem; `index` keeps equal stems apart.
pub fn shard_name(index: usize, shard: &str) -> String {
    format!("{index:05}-{shard}.vectors")
}
