//! Checkpoints on shared storage: a folder a step, a safetensors file a rank, a manifest written last.
//!
//! `host_copy` is the only part that training waits for; the thread of `writer` hashes, writes and syncs behind it (`file`), creates the
//! manifest and deletes what is old (`commit`); `watch` knows what it is at, and `faults` make storage fail on purpose. `read` believes
//! nothing that the manifest's digests do not confirm. Knows tensors and files, no model.

mod commit;
mod faults;
mod file;
mod host_copy;
mod read;
#[cfg(test)]
mod sweep;
mod watch;
mod writer;

pub use commit::{committed_steps, create_manifest, remove, retire, set_aside};
pub use faults::Faults;
pub use file::write;
pub use host_copy::HostCopy;
pub use read::{Loaded, manifest, newest, read};
pub use watch::{Operation, Watch};
pub use writer::{Busy, Task, Writer};

use common::{
    ids::{JobId, Step},
    manifest::ManifestError,
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
    /// The file or folder it is about.
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. }
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
