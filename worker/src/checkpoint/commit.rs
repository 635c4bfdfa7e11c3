//! The manifest: what makes a folder a checkpoint.

use super::{CheckpointError, file::sync_folder, io};
use common::{
    ids::{Generation, Step},
    manifest::{Manifest, paths},
};
use std::{
    fs,
    io::{ErrorKind, Write as _},
    path::Path,
};

/// Creates `manifest.json`, synced, under its name at once or not at all. That it exists already with the same content is
/// no error: the order to commit may come twice.
///
/// # Errors
/// When it exists with another content, or cannot be written.
pub fn create_manifest(folder: &Path, manifest: &Manifest) -> Result<(), CheckpointError> {
    let path = folder.join(paths::MANIFEST_FILE);
    let text = serde_json::to_string_pretty(manifest).expect("a manifest is JSON") + "\n";
    let mut temporary =
        tempfile::Builder::new().prefix(".writing-").tempfile_in(folder).map_err(io("create a file in", folder))?;
    temporary.write_all(text.as_bytes()).map_err(io("write", &path))?;
    temporary.as_file().sync_all().map_err(io("sync", &path))?;
    match temporary.persist_noclobber(&path) {
        Ok(_) => sync_folder(folder),
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {
            let there = fs::read_to_string(&path).map_err(io("read", &path))?;
            if there == text { Ok(()) } else { Err(CheckpointError::Exists { path }) }
        }
        Err(error) => Err(io("create", &path)(error.error)),
    }
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
