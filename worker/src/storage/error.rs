//! Why storage did not give what was asked for.

use super::Location;
use std::path::PathBuf;

/// Why a file or object cannot be listed, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// A text names no place.
    #[error("`{text}` is no place for data: {reason}")]
    Location {
        /// The text.
        text: String,
        /// What is wrong.
        reason: &'static str,
    },
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
    /// A pattern has no match.
    #[error("nothing matches {pattern}: check the path or URL, and that the storage is mounted or can be reached here")]
    NoMatch {
        /// The pattern.
        pattern: Location,
    },
    /// There is no such file or object.
    #[error("{location} does not exist")]
    NotFound {
        /// Where it was looked for.
        location: Location,
    },
    /// A read goes past the end.
    #[error(
        "{location} ends at byte {size}, and bytes {offset} to {end} were asked for: it is shorter than its index says"
    )]
    PastEnd {
        /// Where was read.
        location: Location,
        /// The first byte that was asked for.
        offset: u64,
        /// The byte after the last.
        end: u64,
        /// Its length.
        size: u64,
    },
    /// An object is another one than before.
    #[error(
        "{location} was replaced while it was in use (version {before} before, {now} now): leave data alone while jobs \
         read it, and start again"
    )]
    Changed {
        /// Which object.
        location: Location,
        /// Its version when its first block was read.
        before: String,
        /// Its version now.
        now: String,
    },
    /// The environment lacks what the store needs.
    #[error("{location} cannot be reached: {reason}")]
    Credentials {
        /// Where was asked.
        location: Location,
        /// Which variable is missing or wrong.
        reason: String,
    },
    /// The store said no, and will say so again.
    #[error("could not {operation} {location}: {answer}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// On what.
        location: Location,
        /// The store's answer, and what may be wrong with the environment.
        answer: String,
    },
    /// The store gave no good answer in time.
    #[error(
        "could not {operation} {location}: tried {attempts} times in {seconds:.1} s, the last answer was: {answer}"
    )]
    GaveUp {
        /// What was tried.
        operation: &'static str,
        /// On what.
        location: Location,
        /// How often.
        attempts: u32,
        /// For how long.
        seconds: f64,
        /// What the last try brought, and what may be wrong with the environment.
        answer: String,
    },
    /// The caller wants no more.
    #[error("{operation} {location} was cancelled")]
    Cancelled {
        /// What was under way.
        operation: &'static str,
        /// On what.
        location: Location,
    },
    /// The threads for requests could not be started.
    #[error("could not start the threads that read object storage: {0}")]
    Start(std::io::Error),
}
