//! `ckpt`: what checkpoints there are, and whether they are whole.

use super::{Common, error::CliError, locate, output};
use common::{
    ids::{JobId, Step},
    manifest::{Manifest, paths},
};
use serde::Serialize;
use std::{
    fs,
    path::{Path, PathBuf},
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum CkptCommand {
    /// List checkpoints
    Ls(PathArg),
    /// Read every byte and compare digests; exit code 1 when something is damaged
    Verify(PathArg),
}

#[derive(Debug, clap::Args)]
pub(super) struct PathArg {
    /// A job, its output folder, a stage's folder or a checkpoint's
    path: String,
}

/// One checkpoint's folder.
#[derive(Debug, Serialize)]
struct Found {
    folder: PathBuf,
    stage: String,
    step: Step,
    /// Absent where no manifest says so.
    job: Option<JobId>,
    generation: u64,
    ranks: u32,
    bytes: u64,
    /// What is wrong; absent when nothing was found to be.
    problem: Option<String>,
}

pub(super) async fn main(command: &CkptCommand, common: &Common) -> Result<u8, CliError> {
    let (args, verify) = match command {
        CkptCommand::Ls(args) => (args, false),
        CkptCommand::Verify(args) => (args, true),
    };
    let root = root(&args.path);
    let folders = folders(&root);
    if folders.is_empty() {
        return Err(CliError::usage(format!(
            "there is no checkpoint (step-*) in {} or one of its folders",
            root.display()
        )));
    }
    let mut found: Vec<Found> = folders.iter().map(|(folder, step)| look(folder, *step, verify)).collect();
    foreign(&mut found);
    match common.format {
        output::Format::Json => output::print_json(Some("checkpoints"), &found),
        output::Format::Text => print(&found, verify),
    }
    let damaged = found.iter().filter(|checkpoint| checkpoint.problem.is_some()).count();
    Ok(u8::from(verify && damaged > 0))
}

fn print(found: &[Found], verified: bool) {
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|checkpoint| {
            let whole = if verified { "verified" } else { "committed" };
            vec![
                checkpoint.stage.clone(),
                checkpoint.step.to_string(),
                checkpoint.generation.to_string(),
                checkpoint.ranks.to_string(),
                output::bytes(checkpoint.bytes),
                checkpoint.problem.clone().unwrap_or_else(|| whole.to_owned()),
            ]
        })
        .collect();
    output::print_table(&["stage", "step", "generation", "ranks", "size", "state"], &rows);
}

/// A job's output folder, or the path itself.
pub(super) fn root(path: &str) -> PathBuf {
    match locate::place(path) {
        locate::Place::Local { state, .. } if !Path::new(path).exists() => {
            state.parent().map_or_else(|| state.clone(), Path::to_owned)
        }
        _ => PathBuf::from(path),
    }
}

/// Checkpoints at, in or one below a folder.
fn folders(root: &Path) -> Vec<(PathBuf, Step)> {
    let step = |path: &Path| paths::parse_step_folder(path.file_name()?.to_str()?);
    let absolute = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    if let Some(step) = step(&absolute) {
        return vec![(absolute, step)];
    }
    let children = |folder: &Path| -> Vec<PathBuf> {
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let stages = children(root);
    let all = stages.iter().cloned().chain(stages.iter().flat_map(|stage| children(stage)));
    let mut found: Vec<(PathBuf, Step)> = all.filter_map(|path| Some((path.clone(), step(&path)?))).collect();
    found.sort();
    found
}

fn look(folder: &Path, step: Step, verify: bool) -> Found {
    let stage = folder.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let mut found = Found {
        folder: folder.to_owned(),
        stage: stage.unwrap_or_default(),
        step,
        job: None,
        generation: 0,
        ranks: 0,
        bytes: 0,
        problem: None,
    };
    match manifest(folder, step) {
        Ok(manifest) => {
            found.job = Some(manifest.job.clone());
            found.generation = manifest.generation.0;
            found.ranks = manifest.world.0;
            found.bytes = manifest.parts.iter().map(|part| part.bytes).sum();
            found.problem =
                if verify { manifest.parts.iter().find_map(|part| verify_part(folder, part).err()) } else { None };
        }
        Err(problem) => found.problem = Some(problem),
    }
    found
}

/// A stage's folder holds checkpoints of one job: one that was copied or moved there from another's is named. Whose the folder is, more
/// than half of its checkpoints say; where none does, all are named.
fn foreign(found: &mut [Found]) {
    let owners: Vec<(Option<PathBuf>, Option<JobId>)> =
        found.iter().map(|one| (one.folder.parent().map(Path::to_owned), one.job.clone())).collect();
    for (one, (folder, job)) in found.iter_mut().zip(&owners) {
        let Some(job) = job else { continue };
        let beside = || owners.iter().filter(|(other, _)| other == folder).filter_map(|(_, job)| job.as_ref());
        let Some(other) = beside().find(|other| *other != job) else { continue };
        if 2 * beside().filter(|other| *other == job).count() <= beside().count() {
            let manifest = one.folder.join(paths::MANIFEST_FILE);
            let problem = format!("{} is of job {job}, another here is of job {other}", manifest.display());
            one.problem.get_or_insert(problem);
        }
    }
}

fn manifest(folder: &Path, step: Step) -> Result<Manifest, String> {
    let path = folder.join(paths::MANIFEST_FILE);
    if !path.exists() {
        return Err("not committed: it has no manifest.json".to_owned());
    }
    let text = fs::read_to_string(&path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    let manifest = Manifest::parse(&text, step).map_err(|error| format!("{}: {error}", path.display()))?;
    let stage = folder.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    if stage.is_some_and(|stage| stage != manifest.stage) {
        return Err(format!("{} is of stage {}, not of this folder's", path.display(), manifest.stage));
    }
    Ok(manifest)
}

fn verify_part(folder: &Path, part: &common::manifest::Part) -> Result<(), String> {
    let path = folder.join(&part.file);
    let fail = |error: std::io::Error| format!("{} cannot be read: {error}", path.display());
    let mut hasher = blake3::Hasher::new();
    let file = fs::File::open(&path).map_err(fail)?;
    let bytes = file.metadata().map_err(fail)?.len();
    if bytes != part.bytes {
        return Err(format!("{} has {bytes} bytes, its manifest says {}", path.display(), part.bytes));
    }
    hasher.update_reader(file).map_err(fail)?;
    let same = hasher.finalize().to_hex().as_str() == part.blake3;
    if same { Ok(()) } else { Err(format!("{} is damaged: its BLAKE3 digest is not the manifest's", path.display())) }
}
