//! What `llm2clip ckpt` wants to know of a bucket, as JSON.

use super::{CheckpointError, Shelf};
use crate::storage::{Limits, Location, Storage, StorageError};
use common::{
    ids::Step,
    manifest::{Listed, paths},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Where to look.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// The URL of a job's checkpoints, of a stage's, or of one
    pub place: PathBuf,
    /// Read every byte and compare digests
    #[arg(long)]
    pub verify: bool,
}

/// Looks, and prints.
///
/// # Errors
/// When storage cannot be asked.
pub fn main(args: &ListArgs) -> anyhow::Result<()> {
    let storage = Arc::new(Storage::from_environment(Limits::default()));
    let mut listed = Vec::new();
    for (shelf, step) in checkpoints(&storage, &args.place)? {
        listed.push(look(&shelf, step, args.verify)?);
    }
    println!("{}", serde_json::to_string_pretty(&listed)?);
    Ok(())
}

/// Checkpoints at, in or one below a place.
fn checkpoints(storage: &Arc<Storage>, place: &Path) -> Result<Vec<(Shelf, Step)>, CheckpointError> {
    let name = place.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if paths::parse_step_folder(name).is_some() {
        return Ok(vec![Shelf::of_checkpoint(storage, place)?]);
    }
    let of = |source: StorageError| CheckpointError::Object { path: place.to_owned(), source: Box::new(source) };
    let stages = match Location::from_path(place).map_err(of)? {
        Location::Object(url) => storage.children(&url).map_err(of)?.folders,
        Location::Local(_) => Vec::new(),
    };
    let stages = stages.iter().filter(|name| paths::parse_step_folder(name).is_none()).map(|name| place.join(name));
    let mut found = Vec::new();
    for stage in std::iter::once(place.to_owned()).chain(stages) {
        let shelf = Shelf::at(storage, &stage)?;
        found.extend(shelf.0.steps()?.into_iter().map(|step| (shelf.clone(), step)));
    }
    Ok(found)
}

/// What a checkpoint's manifest says, and what is wrong with it. That storage gives no answer is no property of a checkpoint.
fn look(shelf: &Shelf, step: Step, verify: bool) -> Result<Listed, CheckpointError> {
    let mut listed = Listed::new(shelf.place(step), step);
    if !shelf.0.exists(step, paths::MANIFEST_FILE)? {
        listed.problem = Some("not committed: it has no manifest.json".to_owned());
        return Ok(listed);
    }
    match shelf.manifest(step) {
        Ok(manifest) => listed.describe(&manifest),
        Err(error) if error.is_unseen() => return Err(error),
        Err(error) => listed.problem = Some(error.to_string()),
    }
    if verify && listed.problem.is_none() {
        match shelf.read(step) {
            Ok(_) => {}
            Err(error) if error.is_unseen() => return Err(error),
            Err(error) => listed.problem = Some(error.to_string()),
        }
    }
    Ok(listed)
}
