//! Checkpoints in folders of a file system. What is written goes to storage before much of it has piled up, and out of the page cache,
//! which is the loader's; names are made durable by syncing the folder.

use super::{
    CheckpointError, HostCopy,
    file::{PIECE, Stream},
    io,
    shelf::Medium,
    watch::{Operation, Watch},
};
use common::{
    ids::Step,
    manifest::{Part, paths},
};
use std::{
    fs::{self, File},
    io::{self, BufWriter, ErrorKind, Write},
    num::NonZeroU64,
    path::{Path, PathBuf},
};

/// As much may wait in the page cache for storage. Without a bound the sync at the end keeps every other write of the machine
/// waiting for gigabytes; with one that is too small, storage rests between two pieces.
const UNSYNCED: u64 = 64 << 20;

/// A stage's folder.
#[derive(Debug)]
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    fn step(&self, step: Step) -> PathBuf {
        self.0.join(paths::step_folder(step))
    }

    fn file(&self, step: Step, name: &str) -> PathBuf {
        self.step(step).join(name)
    }

    fn manifest_file(&self, step: Step) -> PathBuf {
        self.file(step, paths::MANIFEST_FILE)
    }
}

impl Medium for Folder {
    fn place(&self) -> &Path {
        &self.0
    }

    /// Under a temporary name, synced, renamed, the folder synced. What is half written is removed again.
    fn write(&self, watch: &Watch, step: Step, copy: &HostCopy) -> Result<Part, CheckpointError> {
        let stream = Stream::of(copy);
        let (folder, path) = (self.step(step), self.file(step, &stream.name()));
        watch
            .at(Operation::Folder, &folder)
            .and_then(|()| fs::create_dir_all(&folder))
            .map_err(io("create", &folder))?;
        watch.at(Operation::Create, &path).map_err(io("create", &path))?;
        let temporary = temporary(&folder)?;
        let pieces = Pieces { watch, path: &path, file: temporary.as_file(), written: 0, synced: 0 };
        let mut out = BufWriter::with_capacity(PIECE, pieces);
        let part = stream.through(|piece| out.write_all(piece).map_err(io("write", &path)))?;
        out.flush().map_err(io("write", &path))?;
        drop(out);
        watch.at(Operation::Sync, &path).and_then(|()| temporary.as_file().sync_all()).map_err(io("sync", &path))?;
        forget(temporary.as_file(), 0);
        watch.at(Operation::Rename, &path).map_err(io("rename to", &path))?;
        temporary.persist(&path).map_err(|error| io("rename to", &path)(error.error))?;
        sync_folder(watch, Operation::SyncFolder, &folder)?;
        Ok(part)
    }

    fn create_manifest(&self, watch: &Watch, step: Step, text: &str) -> Result<bool, CheckpointError> {
        let (folder, path) = (self.step(step), self.manifest_file(step));
        watch.at(Operation::ManifestCreate, &path).map_err(io("create", &path))?;
        let mut temporary = temporary(&folder)?;
        watch.at(Operation::ManifestWrite, &path).map_err(io("write", &path))?;
        temporary.write_all(text.as_bytes()).map_err(io("write", &path))?;
        watch.at(Operation::ManifestSync, &path).map_err(io("sync", &path))?;
        temporary.as_file().sync_all().map_err(io("sync", &path))?;
        watch.at(Operation::ManifestRename, &path).map_err(io("create", &path))?;
        match temporary.persist_noclobber(&path) {
            Ok(_) => sync_folder(watch, Operation::ManifestSyncFolder, &folder).map(|()| true),
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(io("create", &path)(error.error)),
        }
    }

    fn steps(&self) -> Result<Vec<Step>, CheckpointError> {
        let mut steps: Vec<Step> = names(&self.0)?.iter().filter_map(|name| paths::parse_step_folder(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    fn files(&self, step: Step) -> Result<Vec<String>, CheckpointError> {
        names(&self.step(step))
    }

    fn exists(&self, step: Step, name: &str) -> Result<bool, CheckpointError> {
        let path = self.file(step, name);
        path.try_exists().map_err(io("look for", &path))
    }

    fn manifest(&self, step: Step) -> Result<Option<String>, CheckpointError> {
        let path = self.manifest_file(step);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io("read", path)(error)),
        }
    }

    fn open(&self, step: Step, part: &Part) -> Result<memmap2::Mmap, CheckpointError> {
        let path = self.file(step, &part.file);
        let file = File::open(&path).map_err(io("open", &path))?;
        crate::torch::map_file(&file).map_err(io("map", &path))
    }

    fn delete_manifest(&self, watch: &Watch, step: Step) -> Result<(), CheckpointError> {
        let (folder, path) = (self.step(step), self.manifest_file(step));
        watch.at(Operation::Delete, &path).map_err(io("delete", &path))?;
        match fs::remove_file(&path) {
            Ok(()) => File::open(&folder).and_then(|folder| folder.sync_all()).map_err(io("sync", folder)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io("delete", path)(error)),
        }
    }

    fn delete(&self, watch: &Watch, step: Step, name: &str) -> Result<(), CheckpointError> {
        let path = self.file(step, name);
        watch.at(Operation::Delete, &path).and_then(|()| fs::remove_file(&path)).map_err(io("delete", path))
    }

    fn delete_folder(&self, watch: &Watch, step: Step) -> Result<(), CheckpointError> {
        let folder = self.step(step);
        match watch.at(Operation::DeleteFolder, &folder).and_then(|()| fs::remove_dir(&folder)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            done => done.map_err(io("delete", folder)),
        }
    }

    fn set_aside(&self, step: Step, name: &str) -> Result<(), CheckpointError> {
        let from = self.step(step);
        fs::rename(&from, self.0.join(name)).map_err(io("rename", from))
    }
}

fn temporary(folder: &Path) -> Result<tempfile::NamedTempFile, CheckpointError> {
    tempfile::Builder::new().prefix(".writing-").tempfile_in(folder).map_err(io("create a file in", folder))
}

/// What lies in a folder; nothing when there is none.
fn names(folder: &Path) -> Result<Vec<String>, CheckpointError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io("list", folder))?,
    };
    let name = |entry: io::Result<fs::DirEntry>| {
        // What is no text is no name of ours, and is told of when it is to be deleted.
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned()).map_err(io("list", folder))
    };
    entries.map(name).collect()
}

/// Makes new names in a folder durable.
fn sync_folder(watch: &Watch, operation: Operation, folder: &Path) -> Result<(), CheckpointError> {
    let sync = || File::open(folder).and_then(|folder| folder.sync_all());
    watch.at(operation, folder).and_then(|()| sync()).map_err(io("sync", folder))
}

/// A file that is on storage but for its newest [`UNSYNCED`] bytes.
struct Pieces<'a> {
    watch: &'a Watch,
    path: &'a Path,
    file: &'a File,
    written: u64,
    synced: u64,
}

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.watch.at(Operation::Write, self.path)?;
        let count = self.file.write(&bytes[..bytes.len().min(PIECE)])?;
        self.written += count as u64;
        if self.written - self.synced >= UNSYNCED {
            self.watch.at(Operation::Sync, self.path)?;
            self.file.sync_data()?;
            forget(self.file, self.synced);
            self.synced = self.written;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes what is on storage out of the page cache, from an offset to the end: nobody reads a checkpoint soon, and the data of the
/// training is read all the time. A file system that cannot do it does not.
fn forget(file: &File, from: u64) {
    let _ = rustix::fs::fadvise(file, from, None::<NonZeroU64>, rustix::fs::Advice::DontNeed);
}
