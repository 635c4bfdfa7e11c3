//! Why data cannot be read.

use crate::storage::{Location, StorageError};
use std::io;

/// Why a data set cannot be used, or a batch not be made.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The storage of files and objects has its own words.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A file or folder cannot be read.
    #[error("could not {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: Location,
        /// What the system said.
        source: io::Error,
    },
    /// A pattern of `shards` has no match.
    #[error(
        "nothing matches {pattern}: check the path or URL (`shards` or `files` in a recipe), and that the storage is mounted or can be \
         reached here"
    )]
    NoMatch {
        /// The pattern.
        pattern: Location,
    },
    /// A folder of objects where shards are due.
    #[error(
        "{folder} is a folder of objects, not a shard: name its shards by a pattern, such as {folder}/*.tar. Images that lie \
         there one by one are not looked for, because a bucket would have to be listed at every start, a thousand names a \
         request: pack them into tars (`kind = \"webdataset\"`), or name them once in a table with a column `image` \
         (`kind = \"list\"`, `shards = \"names.csv\"`, `images = \"{folder}\"`)"
    )]
    FolderOfObjects {
        /// The folder.
        folder: Location,
    },
    /// A shard is something else than a tar.
    #[error("{path} is no tar: its first 512 bytes are no tar header; remove it from `shards` or fetch it again")]
    NotATar {
        /// The file.
        path: Location,
    },
    /// A shard that holds a table cannot be read.
    #[error("could not read {path}: {reason}")]
    Shard {
        /// The shard.
        path: Location,
        /// What its reader said.
        reason: String,
    },
    /// A shard of zero bytes: a download that failed.
    #[error(
        "{path} has zero bytes: a tar without samples has at least 1024; remove it from `shards` or fetch it again"
    )]
    EmptyFile {
        /// The file.
        path: Location,
    },
    /// A shard is no longer there.
    #[error("{path} is gone since it was indexed: bring it back, or take it out of `shards` and start the job anew")]
    ShardGone {
        /// The shard.
        path: Location,
    },
    /// A shard is another one than was indexed.
    #[error(
        "{path} has changed since it was indexed ({was} bytes then, {is} now): bring the old file back and resume, or \
         start the job anew, which indexes it again"
    )]
    ShardChanged {
        /// The shard.
        path: Location,
        /// Its size in bytes when it was indexed.
        was: u64,
        /// Its size in bytes now.
        is: u64,
    },
    /// An index was damaged after it was opened.
    #[error("the index {path} is damaged ({reason}): remove the file and resume, it is made again")]
    DamagedIndex {
        /// The index.
        path: Location,
        /// What is wrong.
        reason: String,
    },
    /// The joined captions cannot be kept.
    #[error(
        "could not keep the joined captions in {path}: {source}; free space there, or name a folder that can be written \
         (`index` of the data set)"
    )]
    Keep {
        /// The folder or file.
        path: Location,
        /// What the system said.
        source: io::Error,
    },
    /// Samples lack a row, and the recipe bears none.
    #[error(
        "data set `{name}`: {count} samples have no row in the caption table (`captions.unmatched` is \"error\"): {examples}"
    )]
    Unmatched {
        /// The data set.
        name: String,
        /// How many.
        count: u64,
        /// Some of their keys.
        examples: String,
    },
    /// The caption table cannot be read.
    #[error("could not read the captions in {path}: {reason}")]
    Table {
        /// The file.
        path: Location,
        /// What its reader said.
        reason: String,
    },
    /// The caption table lacks a column.
    #[error("{path} has no column `{column}`; it has: {columns}")]
    MissingColumn {
        /// The file.
        path: Location,
        /// The column that the recipe names.
        column: String,
        /// The columns that there are.
        columns: String,
    },
    /// A caption column needs a table, and there is none.
    #[error("data set `{name}`: captions `{column}` need a table; set `captions.table`, or use `.txt`")]
    NoTable {
        /// The data set.
        name: String,
        /// The column.
        column: String,
    },
    /// More samples are broken than the recipe bears.
    #[error(
        "data set `{name}`: {skipped} of {total} samples are broken ({percent:.2} %), \
         more than `broken_limit` = {limit} bears\n{report}"
    )]
    TooManyBroken {
        /// The data set.
        name: String,
        /// How many were skipped.
        skipped: u64,
        /// How many there are with them.
        total: u64,
        /// Their share in percent.
        percent: f64,
        /// The share that the recipe bears.
        limit: f64,
        /// Reasons and examples.
        report: String,
    },
    /// Nothing is left.
    #[error("data set `{name}` has no usable sample\n{report}")]
    Empty {
        /// The data set.
        name: String,
        /// Reasons and examples.
        report: String,
    },
    /// A broken image's successors are broken too.
    #[error(
        "data set `{name}`: sample {index} (key `{key}`) and the {tries} after it cannot be decoded; the last said: \
         {reason}. `llm2clip data inspect` lists what is broken"
    )]
    NoReplacement {
        /// The data set.
        name: String,
        /// The sample that was asked for.
        index: u64,
        /// Its key.
        key: String,
        /// How many others were tried.
        tries: u64,
        /// What the decoder said of the last.
        reason: String,
    },
    /// A request names a data set or a sample that is not there.
    #[error("batch {tag} asks for sample {index} of data set number {source_number}, which is not there")]
    NoSuchSample {
        /// The batch.
        tag: u64,
        /// The data set's number.
        source_number: u32,
        /// The sample.
        index: u64,
    },
    /// A thread of the loader ended early.
    #[error("a thread of the loader failed: {reason}")]
    Thread {
        /// Its panic's message, or why it could not start.
        reason: String,
    },
    /// No batch came in time.
    #[error("no batch was ready within {seconds} s: the storage of the shards does not answer")]
    Stalled {
        /// How long was waited.
        seconds: u64,
    },
}

impl DataError {
    /// A file or object that cannot be read. The storage's own error, where there is one, names the place already.
    pub(super) fn io(operation: &'static str, path: &Location, source: io::Error) -> Self {
        match source.downcast::<StorageError>() {
            Ok(error) => Self::Storage(error),
            Err(source) => Self::Io { operation, path: path.clone(), source },
        }
    }
}
