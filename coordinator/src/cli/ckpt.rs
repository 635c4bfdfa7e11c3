//! `ckpt`: what checkpoints there are, and whether they are whole.

use super::{Common, error::CliError, locate, output};
use crate::programs::program;
use common::{
    ids::{JobId, Step},
    manifest::{Listed, Manifest, paths},
    recipe::is_url,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
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
    /// A job, its output folder, a stage's folder or a checkpoint's; or the URL of any, such as s3://BUCKET/FOLDER
    path: String,
}

pub(super) async fn main(command: &CkptCommand, common: &Common) -> Result<u8, CliError> {
    let (args, verify) = match command {
        CkptCommand::Ls(args) => (args, false),
        CkptCommand::Verify(args) => (args, true),
    };
    let root = root(&args.path);
    let places: Vec<PathBuf> = std::iter::once(root.clone()).chain(kept_elsewhere(&root)).collect();
    let mut found = Vec::new();
    for place in &places {
        if is_url(place) {
            found.extend(in_bucket(place, verify)?);
        } else {
            found.extend(folders(place).into_iter().map(|(folder, step)| look(folder, step, verify)));
        }
    }
    if found.is_empty() {
        let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        let places = places.join(" or ");
        return Err(CliError::usage(format!("there is no checkpoint (step-*) in {places} or a folder in it")));
    }
    foreign(&mut found);
    match common.format {
        output::Format::Json => output::print_json(Some("checkpoints"), &found),
        output::Format::Text => print(&found, verify),
    }
    let damaged = found.iter().filter(|checkpoint| checkpoint.problem.is_some()).count();
    Ok(u8::from(verify && damaged > 0))
}

fn print(found: &[Listed], verified: bool) {
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

fn look(folder: PathBuf, step: Step, verify: bool) -> Listed {
    let manifest = manifest(&folder, step);
    let mut found = Listed::new(folder, step);
    match manifest {
        Ok(manifest) => {
            found.describe(&manifest);
            let damaged = || manifest.parts.iter().find_map(|part| verify_part(&found.folder, part).err());
            if verify && found.problem.is_none() {
                found.problem = damaged();
            }
        }
        Err(problem) => found.problem = Some(problem),
    }
    found
}

/// Where the recipe of a job keeps its checkpoints, if not in its output folder: the stages that train have left it there.
fn kept_elsewhere(output: &Path) -> Option<PathBuf> {
    if is_url(output) {
        return None;
    }
    let stages = fs::read_dir(output).into_iter().flatten().flatten().map(|entry| entry.path());
    let recipe = |folder: PathBuf| -> Option<serde_json::Value> {
        serde_json::from_slice(&fs::read(folder.join("recipe.json")).ok()?).ok()
    };
    stages.filter_map(recipe).find_map(|document| Some(document["recipe"]["checkpoints"].as_str()?.into()))
}

/// What there is in a bucket; the trainer knows how to get there.
fn in_bucket(place: &Path, verify: bool) -> Result<Vec<Listed>, CliError> {
    let trainer = program("llm2clip-trainer");
    let mut command = Command::new(&trainer);
    command.arg("checkpoints").arg(place).args(verify.then_some("--verify"));
    let failed = |what: String| CliError::new(1, format!("{}: {what}", trainer.display()));
    let output = command.output().map_err(|error| failed(format!("{error}; it belongs beside `llm2clip`")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(CliError::new(1, said.trim().trim_start_matches("error: ")));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))
}

/// A stage's folder holds checkpoints of one job: one that was copied or moved there from another's is named. Whose the folder is, more
/// than half of its checkpoints say; where none does, all are named.
fn foreign(found: &mut [Listed]) {
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
    Manifest::parse(&text, step).map_err(|error| format!("{}: {error}", path.display()))
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
