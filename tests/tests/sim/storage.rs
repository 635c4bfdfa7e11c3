//! Shared storage: files that are visible at once and durable later, as a network file system with a cache of each machine's
//! writes. A machine that loses power takes what was not durable with it.

use common::{
    ids::{Generation, Rank, Step},
    manifest::{Manifest, paths},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher as _},
    path::{Path, PathBuf},
    time::Duration,
};

/// Which generation carried out each step of a training, in order: what its state depends on.
pub type Lineage = Vec<Generation>;

/// Stands for the digest of a file's bytes.
pub fn digest(lineage: &Lineage) -> String {
    let mut hasher = DefaultHasher::new();
    lineage.hash(&mut hasher);
    format!("{:016x}", hasher.finish()).repeat(4)
}

/// A rank's file.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    pub lineage: Lineage,
    pub generation: Generation,
    /// Who wrote it, as (machine, process).
    pub writer: (usize, u32),
    pub durable_at: Duration,
}

/// A manifest.
#[derive(Debug, Clone)]
pub struct ManifestFile {
    pub manifest: Manifest,
    pub machine: usize,
    pub durable_at: Duration,
}

/// All files.
#[derive(Debug, Default)]
pub struct Storage {
    /// By folder and file name.
    parts: BTreeMap<(PathBuf, String), Part>,
    manifests: BTreeMap<PathBuf, ManifestFile>,
}

impl Storage {
    /// Writes a rank's file under its name, in the place of one that is there.
    pub fn write(&mut self, folder: PathBuf, file: String, part: Part) {
        self.parts.insert((folder, file), part);
    }

    /// Creates a manifest, unless there is one with another content.
    pub fn create(&mut self, folder: PathBuf, file: ManifestFile) -> Result<(), String> {
        match self.manifests.get(&folder) {
            Some(there) if there.manifest != file.manifest => {
                Err(format!("{} has a manifest already, with another content", folder.display()))
            }
            Some(_) => Ok(()),
            None => {
                self.manifests.insert(folder, file);
                Ok(())
            }
        }
    }

    /// Whether a path is a file that can be seen.
    pub fn read(&self, file: &Path) -> Option<String> {
        let folder = file.parent().filter(|_| file.ends_with(paths::MANIFEST_FILE))?;
        let found = self.manifests.get(folder)?;
        Some(found.manifest.to_text())
    }

    /// The names in a folder.
    pub fn list(&self, folder: &Path) -> Vec<String> {
        let folders = self.parts.keys().map(|(folder, _)| folder).chain(self.manifests.keys());
        let below = folders.filter(|path| path.parent() == Some(folder));
        let names: BTreeSet<String> =
            below.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect();
        names.into_iter().collect()
    }

    /// Moves whatever lies after a step out of the way, as a trainer does that goes on from there.
    pub fn set_aside(&mut self, stage: &Path, step: Step, generation: Generation) {
        let later = |folder: &Path| {
            let name = folder.file_name().and_then(|name| name.to_str());
            folder.parent() == Some(stage) && name.and_then(paths::parse_step_folder).is_some_and(|found| found > step)
        };
        let aside = |folder: &Path| {
            let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            stage.join(format!("discarded-gen-{:05}-{name}", generation.0))
        };
        let parts = std::mem::take(&mut self.parts);
        let moved = |folder: PathBuf| if later(&folder) { aside(&folder) } else { folder };
        self.parts = parts.into_iter().map(|((folder, file), part)| ((moved(folder), file), part)).collect();
        let manifests = std::mem::take(&mut self.manifests);
        self.manifests = manifests.into_iter().map(|(folder, file)| (moved(folder), file)).collect();
    }

    /// A process is gone: the file it was writing is lost.
    pub fn writer_gone(&mut self, writer: (usize, u32), now: Duration) {
        self.parts.retain(|_, part| part.writer != writer || part.durable_at <= now);
    }

    /// A machine lost power: what it wrote and was not durable is lost.
    pub fn power_lost(&mut self, machine: usize, now: Duration) {
        self.parts.retain(|_, part| part.writer.0 != machine || part.durable_at <= now);
        self.manifests.retain(|_, file| file.machine != machine || file.durable_at <= now);
    }

    /// The state that a checkpoint holds.
    ///
    /// # Errors
    /// Why it holds none.
    pub fn load(&self, folder: &Path, step: Step) -> Result<Lineage, String> {
        let shown = folder.display();
        let file = self.manifests.get(folder).ok_or_else(|| format!("{shown} has no manifest"))?;
        if file.manifest.step != step {
            return Err(format!("the manifest in {shown} is of step {}", file.manifest.step));
        }
        let mut state: Option<&Lineage> = None;
        for listed in &file.manifest.parts {
            let rank: Rank = listed.rank;
            let key = (folder.to_owned(), listed.file.clone());
            let part = self.parts.get(&key).ok_or_else(|| format!("{shown} lacks the file of rank {rank}"))?;
            if digest(&part.lineage) != listed.blake3 {
                let (by, of) = (part.generation, file.manifest.generation);
                return Err(format!(
                    "the file of rank {rank} in {shown}, by generation {by}, is not what {of} committed"
                ));
            }
            if state.is_some_and(|state| *state != part.lineage) {
                return Err(format!("the files in {shown} hold different states"));
            }
            state = Some(&part.lineage);
        }
        let state = state.ok_or_else(|| format!("{shown} lists no files"))?;
        if state.len() as u64 != step.0 {
            return Err(format!("{shown} holds the state after step {}", state.len()));
        }
        Ok(state.clone())
    }

    /// Whether a checkpoint survives whatever happens now: its manifest and what that lists. What an earlier membership still writes
    /// beside it does not count.
    pub fn durable(&self, folder: &Path, now: Duration) -> bool {
        let Some(file) = self.manifests.get(folder).filter(|file| file.durable_at <= now) else { return false };
        file.manifest.parts.iter().all(|listed| {
            let part = self.parts.get(&(folder.to_owned(), listed.file.clone()));
            part.is_some_and(|part| part.durable_at <= now)
        })
    }
}
