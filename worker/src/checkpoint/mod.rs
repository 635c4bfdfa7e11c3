//! Checkpoints on shared storage: a folder a step, a safetensors file a rank, a manifest written last.
//!
//! `host_copy` is the only part that training waits for; the thread of `writer` hashes and writes behind it (`file`), creates the
//! manifest and deletes what is old (`commit`); `watch` knows what it is at, and `faults` make storage fail on purpose. `read` believes
//! nothing that the manifest's digests do not confirm. All of it is of a `shelf`, which is in a `folder` of a file system or made of
//! `objects` of a bucket. Knows tensors and storage, no model.

mod commit;
mod faults;
mod file;
mod folder;
mod host_copy;
mod listing;
mod objects;
mod read;
mod shelf;
#[cfg(test)]
mod sweep;
mod watch;
mod writer;

pub use faults::Faults;
pub use host_copy::HostCopy;
pub use listing::{ListArgs, main};
pub use read::Loaded;
pub use shelf::Shelf;
pub use watch::{Operation, Watch};
pub use writer::{Busy, Task, Writer};

use crate::storage::StorageError;
use common::{
    ids::{JobId, Step},
    manifest::{ManifestError, Part},
};
use std::path::{Path, PathBuf};

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system said no.
    #[error("checkpoint: could not {operation} {path}: {source}{}", hint(source))]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The object store said no, or nothing.
    #[error("checkpoint: {source}")]
    Object {
        /// Which object or folder of objects.
        path: PathBuf,
        /// What it said.
        source: Box<StorageError>,
    },
    /// The manifest does not hold.
    #[error("{path} is no manifest of a checkpoint: {source}")]
    Manifest {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: ManifestError,
    },
    /// A file is not what its manifest says.
    #[error(
        "{path} is damaged: {reason}. Go on from an earlier checkpoint: `llm2clip ckpt ls` lists them, `resume --step N` takes one"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// A tensor that is needed is not there.
    #[error("the checkpoint {folder} has no tensor `{name}`: it was written with another model")]
    MissingTensor {
        /// Which checkpoint.
        folder: PathBuf,
        /// Which tensor.
        name: String,
    },
    /// Another membership wrote this checkpoint already.
    #[error("{path} exists and says something else: another run writes to the same output")]
    Exists {
        /// Which manifest.
        path: PathBuf,
    },
    /// The order to commit came after the checkpoint was given up.
    #[error("the checkpoint was given up: {share} is not there any more")]
    GivenUp {
        /// What the committing rank had written.
        share: PathBuf,
    },
    /// It is another job's.
    #[error(
        "{folder} is a checkpoint of stage {stage} of job {job}, not of this one: take it away, or `resume --step N` from another"
    )]
    Foreign {
        /// Which checkpoint.
        folder: PathBuf,
        /// Whose it is.
        job: JobId,
        /// Of which stage.
        stage: String,
    },
    /// The last checkpoint is not on storage, which does not answer.
    #[error(
        "checkpoint: storage has not answered for {seconds} s in `{operation}` of {path} (the checkpoint of step {step}): look at the \
         shared storage, then `llm2clip resume JOB`"
    )]
    Hangs {
        /// In which operation.
        operation: &'static str,
        /// Of which file.
        path: PathBuf,
        /// Of which checkpoint.
        step: Step,
        /// For how long.
        seconds: u64,
    },
    /// Another rank has no checkpoint to give.
    #[error("the checkpoint of step {step} could not be written: another rank says why")]
    Elsewhere {
        /// Which.
        step: Step,
    },
}

impl CheckpointError {
    /// A file is longer or shorter than its manifest says.
    fn other_length(path: PathBuf, bytes: u64, part: &Part) -> Self {
        Self::Damaged { path, reason: format!("it has {bytes} bytes, its manifest says {}", part.bytes) }
    }

    /// Whether nothing is known of what was asked for: storage gave no answer, or let nobody in.
    pub fn is_unseen(&self) -> bool {
        let Self::Object { source, .. } = self else { return false };
        !matches!(**source, StorageError::NotFound { .. } | StorageError::PastEnd { .. } | StorageError::Changed { .. })
    }

    /// The file or folder it is about.
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. }
            | Self::Object { path, .. }
            | Self::Manifest { path, .. }
            | Self::Damaged { path, .. }
            | Self::Exists { path }
            | Self::Hangs { path, .. } => path,
            Self::MissingTensor { folder, .. } | Self::Foreign { folder, .. } => folder,
            Self::GivenUp { share } => share,
            Self::Elsewhere { .. } => Path::new(""),
        }
    }
}

fn hint(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            ". Free space on the shared storage; a job that has ended goes on with `llm2clip resume JOB`"
        }
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
            ". Let the worker's user write to the job's `output`; a job that has ended goes on with `llm2clip resume JOB`"
        }
        _ => "",
    }
}

pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> CheckpointError {
    let path = path.into();
    move |source| CheckpointError::Io { operation, path, source }
}
