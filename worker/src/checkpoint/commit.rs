//! The manifest: what makes a folder a checkpoint, and the first thing of it that goes.

use super::{CheckpointError, file::sync_folder, io, watch::Operation, watch::Watch};
use common::{
    ids::{Generation, Rank, Step},
    manifest::{Manifest, paths, retention},
};
use std::{
    fs,
    io::{ErrorKind, Write as _},
    path::Path,
};

/// Creates `manifest.json`, synced, under its name at once or not at all. That it exists already with the same content is
/// no error: the order to commit may come twice. `mine` is the rank that creates it: what it has written is to be there.
///
/// # Errors
/// When it exists with another content, the checkpoint was given up meanwhile, or it cannot be written.
pub fn create_manifest(watch: &Watch, folder: &Path, mine: Rank, manifest: &Manifest) -> Result<(), CheckpointError> {
    let path = folder.join(paths::MANIFEST_FILE);
    if let Some(part) = manifest.parts.iter().find(|part| part.rank == mine) {
        let share = folder.join(&part.file);
        let there = share.try_exists().map_err(io("look for", &share))?;
        if !there {
            return Err(CheckpointError::GivenUp { share });
        }
    }
    let text = manifest.to_text();
    watch.at(Operation::ManifestCreate, &path).map_err(io("create", &path))?;
    let mut temporary =
        tempfile::Builder::new().prefix(".writing-").tempfile_in(folder).map_err(io("create a file in", folder))?;
    watch.at(Operation::ManifestWrite, &path).map_err(io("write", &path))?;
    temporary.write_all(text.as_bytes()).map_err(io("write", &path))?;
    watch.at(Operation::ManifestSync, &path).map_err(io("sync", &path))?;
    temporary.as_file().sync_all().map_err(io("sync", &path))?;
    watch.at(Operation::ManifestRename, &path).map_err(io("create", &path))?;
    match temporary.persist_noclobber(&path) {
        Ok(_) => sync_folder(watch, Operation::ManifestSyncFolder, folder),
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {
            let there = fs::read_to_string(&path).map_err(io("read", &path))?;
            if there == text { Ok(()) } else { Err(CheckpointError::Exists { path }) }
        }
        Err(error) => Err(io("create", &path)(error.error)),
    }
}

/// Removes a checkpoint, or what was written of one. Its manifest goes first, for good: whatever happens on the way, what is left
/// is no checkpoint.
///
/// # Errors
/// The first thing that cannot be removed; the rest is left.
pub fn remove(watch: &Watch, folder: &Path) -> Result<(), CheckpointError> {
    let manifest = folder.join(paths::MANIFEST_FILE);
    watch.at(Operation::Delete, &manifest).map_err(io("delete", &manifest))?;
    match fs::remove_file(&manifest) {
        Ok(()) => fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(io("sync", folder))?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(io("delete", manifest)(error)),
    }
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(io("list", folder))?,
    };
    for entry in entries {
        let path = entry.map_err(io("list", folder))?.path();
        watch.at(Operation::Delete, &path).map_err(io("delete", &path))?;
        fs::remove_file(&path).map_err(io("delete", &path))?;
    }
    watch.at(Operation::DeleteFolder, folder).map_err(io("delete", folder))?;
    fs::remove_dir(folder).map_err(io("delete", folder))
}

/// After the commit of `newest`: removes checkpoints that are too many, what others before it have left that were never
/// committed and never will be, and shares of earlier memberships beside its own. What cannot be removed is told of and left.
pub fn retire(watch: &Watch, stage_folder: &Path, newest: Step, keep: usize) {
    let folder = stage_folder.join(paths::step_folder(newest));
    if let Err(error) = remove_strays(watch, &folder, newest) {
        tracing::warn!(folder = %folder.display(), %error, "could not delete what an earlier membership wrote of a checkpoint");
    }
    let committed = committed_steps(stage_folder);
    let old = retention::to_delete(&committed, keep);
    let given_up = |step: &Step| {
        let manifest = stage_folder.join(paths::step_folder(*step)).join(paths::MANIFEST_FILE);
        // One that cannot be looked at is not known to be none.
        *step < newest && manifest.try_exists().is_ok_and(|there| !there)
    };
    let given_up: Vec<Step> = step_folders(stage_folder).into_iter().filter(given_up).collect();
    for step in old.into_iter().chain(given_up) {
        let folder = stage_folder.join(paths::step_folder(step));
        if let Err(error) = remove(watch, &folder) {
            tracing::warn!(folder = %folder.display(), %error, "could not delete an old checkpoint");
        }
    }
}

/// Removes what a manifest does not list. All ranks' shares were in before it was made: whoever still writes has no place any more.
fn remove_strays(watch: &Watch, folder: &Path, step: Step) -> Result<(), CheckpointError> {
    let path = folder.join(paths::MANIFEST_FILE);
    let text = fs::read_to_string(&path).map_err(io("read", &path))?;
    let manifest =
        Manifest::parse(&text, step).map_err(|source| CheckpointError::Manifest { path: path.clone(), source })?;
    let listed = |name: &str| name == paths::MANIFEST_FILE || manifest.parts.iter().any(|part| part.file == name);
    for entry in fs::read_dir(folder).map_err(io("list", folder))? {
        let entry = entry.map_err(io("list", folder))?;
        if !entry.file_name().to_str().is_some_and(listed) {
            let path = entry.path();
            watch.at(Operation::Delete, &path).map_err(io("delete", &path))?;
            fs::remove_file(&path).map_err(io("delete", &path))?;
        }
    }
    Ok(())
}

/// The steps whose folder holds a valid manifest, oldest first. Their files' bytes are not looked at.
pub fn committed_steps(stage_folder: &Path) -> Vec<Step> {
    let mut steps: Vec<Step> = step_folders(stage_folder);
    steps.retain(|step| {
        let path = stage_folder.join(paths::step_folder(*step)).join(paths::MANIFEST_FILE);
        fs::read_to_string(path).is_ok_and(|text| Manifest::parse(&text, *step).is_ok())
    });
    steps
}

/// Moves whatever lies after `step` out of the way: steps that are computed again would mix with it. It becomes
/// `discarded-gen-00007-step-000001200` and is left to the user.
///
/// # Errors
/// When a folder cannot be renamed.
pub fn set_aside(stage_folder: &Path, step: Step, generation: Generation) -> Result<(), CheckpointError> {
    for later in step_folders(stage_folder).into_iter().filter(|later| *later > step) {
        let from = stage_folder.join(paths::step_folder(later));
        let name = format!("discarded-gen-{:05}-{}", generation.0, paths::step_folder(later));
        fs::rename(&from, stage_folder.join(&name)).map_err(io("rename", &from))?;
        tracing::warn!(step = later.0, to = name, "set a later checkpoint aside: its steps are computed again");
    }
    Ok(())
}

fn step_folders(stage_folder: &Path) -> Vec<Step> {
    let entries = fs::read_dir(stage_folder).into_iter().flatten().flatten();
    let mut steps: Vec<Step> =
        entries.filter_map(|entry| paths::parse_step_folder(entry.file_name().to_str()?)).collect();
    steps.sort_unstable();
    steps
}
