//! Why a model cannot be exported, or an exported one not be read.

use crate::{checkpoint::CheckpointError, model::ModelError, storage::StorageError, vectors::VectorsError};
use std::path::PathBuf;

/// What went wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The file system said no.
    #[error("could not {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Checkpoints.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Object stores.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Model folders.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// What text vectors depend on.
    #[error(transparent)]
    Vectors(#[from] VectorsError),
    /// libtorch.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// A safetensors file could not be written.
    #[error("could not write {path}: {source}")]
    Safetensors {
        /// Which file.
        path: PathBuf,
        /// What its writer said.
        source: safetensors::SafeTensorError,
    },
    /// Neither a job's output nor a checkpoint.
    #[error(
        "there is no committed checkpoint of stage `clip` at {path}: name a job, its output folder, or a checkpoint such as \
         OUTPUT/clip/step-000001200"
    )]
    NoCheckpoint {
        /// What was named.
        path: PathBuf,
    },
    /// The recipe of a checkpoint is not there.
    #[error(
        "{path} is missing: jobs leave their recipe there, older ones did not. Name the job's recipe with --recipe FILE"
    )]
    NoRecipe {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A document is not what it should be.
    #[error("{path} cannot be used: {reason}")]
    Document {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The checkpoint was trained with another recipe.
    #[error(
        "the checkpoint {checkpoint} was written by a job with another recipe (fingerprint {theirs}) than {recipe} ({ours}): \
         name the recipe of that job, with every --set it had"
    )]
    OtherRecipe {
        /// The checkpoint's folder.
        checkpoint: PathBuf,
        /// The recipe.
        recipe: String,
        /// The beginning of the fingerprint in the manifest.
        theirs: String,
        /// The beginning of the recipe's.
        ours: String,
    },
    /// The recipe trains no such model.
    #[error("the recipe has no {0}, and without it there is no model to export")]
    Incomplete(&'static str),
    /// The target is something else.
    #[error(
        "{path} is there and is no export (it has no llm2clip.json): nothing is written over it. Name another folder, or \
         remove it"
    )]
    NotAnExport {
        /// The folder.
        path: PathBuf,
    },
    /// A folder that is to be read has no description.
    #[error(
        "{path} has no llm2clip.json, which says how captions are read (template, pooling, tokenizer): make the folder with \
         `llm2clip export JOB --to FOLDER`"
    )]
    NotDescribed {
        /// The folder.
        path: PathBuf,
    },
}

/// Names what was tried on which path.
pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> ExportError {
    let path = path.into();
    move |source| ExportError::Io { operation, path, source }
}
