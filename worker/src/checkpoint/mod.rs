//! Checkpoints on shared storage: a folder a step, a safetensors file a rank, a manifest written last.
//!
//! `host_copy` is the only part that training waits for; `writer` hashes, writes and syncs behind it; `commit` creates the
//! manifest; `read` believes nothing that the manifest's digests do not confirm. Knows tensors and files, no model.

mod commit;
mod file;
mod host_copy;
mod read;
mod writer;

pub use commit::{committed_steps, create_manifest, set_aside};
pub use host_copy::HostCopy;
pub use read::{Loaded, manifest, newest, read};
pub use writer::Writer;

use common::manifest::ManifestError;
use std::path::PathBuf;

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
    /// The thread that writes is gone.
    #[error("the thread that writes checkpoints has ended")]
    WriterGone,
}

fn hint(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            ". Free space on the shared storage, then `llm2clip resume JOB`"
        }
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
            ". Let the worker's user write to the job's `output`, then `llm2clip resume JOB`"
        }
        _ => "",
    }
}

pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> CheckpointError {
    let path = path.into();
    move |source| CheckpointError::Io { operation, path, source }
}
