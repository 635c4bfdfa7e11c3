//! Checkpoints as objects of a bucket. An object appears whole or not at all, so nothing is renamed or synced; the manifest is created on
//! condition that there is none, which is what makes one commit the only one.

use super::{
    CheckpointError, HostCopy,
    file::Stream,
    io,
    shelf::Medium,
    watch::{Operation, Watch},
};
use crate::storage::{Location, ObjectUrl, Storage, StorageError};
use common::{
    ids::Step,
    manifest::{Part, paths},
};
use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A stage's objects: those whose names begin with this one and a `/`.
#[derive(Debug)]
pub(super) struct Objects {
    storage: Arc<Storage>,
    stage: ObjectUrl,
    /// The same as text.
    place: PathBuf,
}

impl Objects {
    /// Of a stage. Nothing is looked at.
    pub(super) fn new(storage: Arc<Storage>, stage: ObjectUrl) -> Self {
        let place = stage.to_string().into();
        Self { storage, stage, place }
    }

    fn below(&self, name: &str) -> ObjectUrl {
        ObjectUrl { key: format!("{}/{name}", self.stage.key), ..self.stage.clone() }
    }

    fn step(&self, step: Step) -> ObjectUrl {
        self.below(&paths::step_folder(step))
    }

    fn object(&self, step: Step, name: &str) -> ObjectUrl {
        self.below(&format!("{}/{name}", paths::step_folder(step)))
    }

    fn spooled(&self, url: &ObjectUrl, part: &Part) -> Result<File, CheckpointError> {
        let entry = self.storage.stat(&Location::Object(url.clone())).map_err(of(url))?;
        if entry.size != part.bytes {
            return Err(CheckpointError::other_length(path(url), entry.size, part));
        }
        let temporary = std::env::temp_dir();
        let mut spool = tempfile::tempfile().map_err(io("create a file in", &temporary))?;
        for block in self.storage.download(url, &entry).map_err(of(url))? {
            let block = block.map_err(of(url))?;
            spool.write_all(&block).map_err(io("keep a checkpoint's file in", &temporary))?;
        }
        Ok(spool)
    }
}

impl Medium for Objects {
    fn place(&self) -> &Path {
        &self.place
    }

    fn write(&self, watch: &Watch, step: Step, copy: &HostCopy) -> Result<Part, CheckpointError> {
        let stream = Stream::of(copy);
        let url = self.object(step, &stream.name());
        let at = |operation, name| watch.at(operation, &path(&url)).map_err(io(name, path(&url)));
        at(Operation::Create, "create")?;
        let mut upload = self.storage.upload(&url, stream.bytes()).map_err(of(&url))?;
        let part = stream.through(|piece| {
            at(Operation::Write, "write")?;
            upload.write(piece).map_err(of(&url))
        })?;
        at(Operation::Sync, "finish")?;
        upload.finish().map_err(of(&url))?;
        Ok(part)
    }

    fn create_manifest(&self, watch: &Watch, step: Step, text: &str) -> Result<bool, CheckpointError> {
        let url = self.object(step, paths::MANIFEST_FILE);
        watch.at(Operation::ManifestCreate, &path(&url)).map_err(io("create", path(&url)))?;
        let created = self.storage.put_if_absent(&Location::Object(url.clone()), text.as_bytes().to_vec());
        created.map_err(of(&url))
    }

    fn steps(&self) -> Result<Vec<Step>, CheckpointError> {
        let children = self.storage.children(&self.stage).map_err(of(&self.stage))?;
        let mut steps: Vec<Step> = children.folders.iter().filter_map(|name| paths::parse_step_folder(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    fn files(&self, step: Step) -> Result<Vec<String>, CheckpointError> {
        let folder = self.step(step);
        Ok(self.storage.children(&folder).map_err(of(&folder))?.objects)
    }

    fn exists(&self, step: Step, name: &str) -> Result<bool, CheckpointError> {
        let url = self.object(step, name);
        self.storage.exists(&Location::Object(url.clone())).map_err(of(&url))
    }

    fn manifest(&self, step: Step) -> Result<Option<String>, CheckpointError> {
        let url = self.object(step, paths::MANIFEST_FILE);
        match self.storage.get(&url) {
            // What is no text is no manifest, and is refused as one.
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(StorageError::NotFound { .. }) => Ok(None),
            Err(error) => Err(of(&url)(error)),
        }
    }

    /// Through a file without a name in the system's folder for such: memory is the training's.
    fn open(&self, step: Step, part: &Part) -> Result<memmap2::Mmap, CheckpointError> {
        let url = self.object(step, &part.file);
        let spool = self.spooled(&url, part)?;
        crate::torch::map_file(&spool).map_err(io("map", path(&url)))
    }

    fn delete_manifest(&self, watch: &Watch, step: Step) -> Result<(), CheckpointError> {
        self.delete(watch, step, paths::MANIFEST_FILE)
    }

    fn delete(&self, watch: &Watch, step: Step, name: &str) -> Result<(), CheckpointError> {
        let url = self.object(step, name);
        watch.at(Operation::Delete, &path(&url)).map_err(io("delete", path(&url)))?;
        self.storage.delete(&url).map_err(of(&url))
    }

    /// A folder is there as long as something is in it.
    fn delete_folder(&self, _: &Watch, _: Step) -> Result<(), CheckpointError> {
        Ok(())
    }

    /// Objects have no other names to be given: they are copied, and the manifest is the last that comes and the first that goes.
    fn set_aside(&self, step: Step, name: &str) -> Result<(), CheckpointError> {
        let mut files = self.files(step)?;
        files.sort_by_key(|file| file == paths::MANIFEST_FILE);
        for file in &files {
            let from = self.object(step, file);
            self.storage.copy(&from, &self.below(&format!("{name}/{file}"))).map_err(of(&from))?;
        }
        for file in files.iter().rev() {
            self.delete(&Watch::default(), step, file)?;
        }
        Ok(())
    }
}

fn path(url: &ObjectUrl) -> PathBuf {
    url.to_string().into()
}

fn of(url: &ObjectUrl) -> impl FnOnce(StorageError) -> CheckpointError {
    let path = path(url);
    move |source| CheckpointError::Object { path, source: Box::new(source) }
}
