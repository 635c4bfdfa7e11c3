//! Where a stage's checkpoints lie: in a folder of shared storage, or in a bucket. What has to be done with either is a [`Medium`];
//! in which order, and what it means, is above it (`commit`, `read`), and the same.

use super::{CheckpointError, HostCopy, folder::Folder, objects::Objects, watch::Watch};
use crate::storage::{Location, Storage};
use common::{
    ids::Step,
    manifest::{Part, paths},
};
use std::{
    fmt::Debug,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What checkpoints are kept on. Whatever changes something is announced to `watch` first.
pub(super) trait Medium: Debug + Send + Sync {
    /// The stage's folder or URL.
    fn place(&self) -> &Path;

    /// Writes a copy as its rank's file. The file is there when all of it is safe, or not at all.
    fn write(&self, watch: &Watch, step: Step, copy: &HostCopy) -> Result<Part, CheckpointError>;

    /// Writes the manifest, for good, at once or not at all; false when there is one already, which stays.
    fn create_manifest(&self, watch: &Watch, step: Step, text: &str) -> Result<bool, CheckpointError>;

    /// The steps of which there is anything, oldest first.
    fn steps(&self) -> Result<Vec<Step>, CheckpointError>;

    /// The names of what there is of a step; none when there is nothing.
    fn files(&self, step: Step) -> Result<Vec<String>, CheckpointError>;

    /// Whether a file of a step is there.
    fn exists(&self, step: Step, name: &str) -> Result<bool, CheckpointError>;

    /// A step's manifest as it is now; absent when there is none.
    fn manifest(&self, step: Step) -> Result<Option<String>, CheckpointError>;

    /// The bytes of a rank's file, whatever they are.
    fn open(&self, step: Step, part: &Part) -> Result<memmap2::Mmap, CheckpointError>;

    /// Deletes a manifest for good before anything else is; that there is none is no error.
    fn delete_manifest(&self, watch: &Watch, step: Step) -> Result<(), CheckpointError>;

    /// Deletes a file.
    fn delete(&self, watch: &Watch, step: Step, name: &str) -> Result<(), CheckpointError>;

    /// Deletes what is left of a step whose files are deleted.
    fn delete_folder(&self, watch: &Watch, step: Step) -> Result<(), CheckpointError>;

    /// Gives all of a step another name in the stage's place.
    fn set_aside(&self, step: Step, name: &str) -> Result<(), CheckpointError>;
}

/// Where a stage's checkpoints lie. Clones are the same place.
#[derive(Debug, Clone)]
pub struct Shelf(pub(super) Arc<dyn Medium>);

impl Shelf {
    /// Of a stage, in the place where a recipe keeps its checkpoints: a folder, or an URL. Nothing is looked at.
    ///
    /// # Errors
    /// When the URL is no place for objects.
    pub fn open(storage: &Arc<Storage>, root: &Path, stage: &str) -> Result<Self, CheckpointError> {
        Self::at(storage, &paths::stage_folder(root, stage))
    }

    /// In a stage's folder or URL.
    ///
    /// # Errors
    /// As [`Shelf::open`].
    pub fn at(storage: &Arc<Storage>, stage: &Path) -> Result<Self, CheckpointError> {
        let location = Location::from_path(stage)
            .map_err(|source| CheckpointError::Object { path: stage.to_owned(), source: Box::new(source) })?;
        Ok(match location {
            Location::Local(folder) => Self::folder(folder),
            Location::Object(url) => Self(Arc::new(Objects::new(storage.clone(), url))),
        })
    }

    /// In a stage's folder.
    pub fn folder(stage: impl Into<PathBuf>) -> Self {
        Self(Arc::new(Folder(stage.into())))
    }

    /// The shelf and the step of a checkpoint's own folder or URL.
    ///
    /// # Errors
    /// When its name is no checkpoint's.
    pub fn of_checkpoint(storage: &Arc<Storage>, checkpoint: &Path) -> Result<(Self, Step), CheckpointError> {
        let name = checkpoint.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let step = paths::parse_step_folder(name).ok_or_else(|| CheckpointError::Damaged {
            path: checkpoint.to_owned(),
            reason: "its name is no checkpoint's, such as step-000001200".to_owned(),
        })?;
        let stage = checkpoint.parent().unwrap_or(Path::new(""));
        Ok((Self::at(storage, stage)?, step))
    }

    /// Where a step's checkpoint lies, as a user would name it.
    pub fn place(&self, step: Step) -> PathBuf {
        self.0.place().join(paths::step_folder(step))
    }

    /// Writes a copy as its rank's file of a step's checkpoint.
    ///
    /// # Errors
    /// When storage refuses; what is half written is removed again.
    pub fn write(&self, watch: &Watch, step: Step, copy: &HostCopy) -> Result<Part, CheckpointError> {
        self.0.write(watch, step, copy)
    }
}
