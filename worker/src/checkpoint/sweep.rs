//! Tests: a process that is killed, and storage that fails, at every single operation of a save, of its commit and of the deletion of
//! what is old. Whatever happened, the newest checkpoint that loads is the one before or this one, whole; and the next save is as if
//! nothing had been.

use super::{
    CheckpointError, HostCopy, Operation, Watch, committed_steps, create_manifest, faults::VARIABLE, newest, read,
    remove, retire, write,
};
use common::{
    ids::{Generation, Rank, Step, WorldSize},
    manifest::{DataCursor, FORMAT, Manifest, paths},
    sampler::OrderSpec,
};
use std::{
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, Output},
};
use tch::{Device, Kind, Tensor};

/// Where the child of a sweep saves.
const FOLDER: &str = "LLM2CLIP_TEST_SWEEP";
const WORLD: WorldSize = WorldSize(2);

/// A state of 2.5 MiB, so that a share takes several writes.
fn state(step: u64) -> Vec<(String, Tensor)> {
    let numbers = |shape: &[i64]| {
        let all = Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)).view(shape);
        all * 1.5 + step as f64
    };
    vec![
        ("param.w".to_owned(), numbers(&[300, 1024])),
        ("param.v".to_owned(), numbers(&[300, 1024])),
        ("param.b".to_owned(), numbers(&[7])),
    ]
}

/// A whole save, as ranks and the coordinator bring it about; a failed one is given up as they do it.
fn save(watch: &Watch, output: &Path, step: u64) -> Result<(), CheckpointError> {
    let folder = paths::checkpoint_folder(output, "clip", Step(step));
    let shares = || {
        let share = |rank| write(watch, &folder, &HostCopy::take(&state(step), rank, WORLD, Generation(1)));
        let parts = WORLD.ranks().map(share).collect::<Result<Vec<_>, _>>()?;
        let manifest = Manifest {
            format: FORMAT,
            job: "demo-1".parse().unwrap(),
            generation: Generation(1),
            step: Step(step),
            world: WORLD,
            stage: "clip".to_owned(),
            recipe_fingerprint: String::new(),
            data: DataCursor::new(&OrderSpec::plain(0, &[], 1), 0, |_| String::new()),
            parts,
        };
        create_manifest(watch, &folder, Rank(0), &manifest)
    };
    match shares() {
        Ok(()) => retire(watch, &paths::stage_folder(output, "clip"), Step(step), 2),
        Err(error) => {
            let _ = remove(watch, &folder);
            return Err(error);
        }
    }
    Ok(())
}

/// The newest checkpoint is whole, and of one of these steps; returns which. Every other that counts as one is whole, too.
fn check(output: &Path, among: &[u64], what: &str) -> u64 {
    let stage = paths::stage_folder(output, "clip");
    let loaded = newest(output, "clip").unwrap().unwrap();
    let step = loaded.manifest.step.0;
    assert!(among.contains(&step), "{what}: step {step}");
    for (name, tensor) in state(step) {
        assert_eq!(loaded.tensor(&name).unwrap(), tensor, "{what}: {name}");
    }
    for step in committed_steps(&stage) {
        read(&stage.join(paths::step_folder(step))).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    step
}

/// What lies in the stage's folder and its checkpoints', by name.
fn names(output: &Path) -> Vec<String> {
    let list = |folder: &Path| -> Vec<std::path::PathBuf> {
        std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    };
    let folders = list(&paths::stage_folder(output, "clip"));
    let all = folders.iter().flat_map(|folder| list(folder)).chain(folders.iter().cloned());
    let mut names: Vec<String> = all.map(|path| path.strip_prefix(output).unwrap().display().to_string()).collect();
    names.sort();
    names
}

/// As a healthy history leaves it.
fn clean(steps: &[u64]) -> Vec<String> {
    let mut names: Vec<String> = steps
        .iter()
        .flat_map(|step| {
            let folder = format!("clip/{}", paths::step_folder(Step(*step)));
            ["", "/manifest.json", "/rank-00000-gen-00001.safetensors", "/rank-00001-gen-00001.safetensors"]
                .map(|name| format!("{folder}{name}"))
        })
        .collect();
    names.sort();
    names
}

/// Runs [`child`] in a process of its own.
fn saved_by_a_child(output: &Path, faults: &str) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "checkpoint::sweep::child", "--ignored", "--test-threads", "1"]);
    command.env(FOLDER, output).env(VARIABLE, faults).env("OMP_NUM_THREADS", "1").output().unwrap()
}

#[test]
#[ignore = "no test of its own: the process that the sweep starts by this name, and kills"]
fn child() {
    let Some(output) = std::env::var_os(FOLDER) else { return };
    let watch = Watch::new(super::Faults::from_environment().unwrap());
    save(&watch, Path::new(&output), 12).unwrap();
}

#[test]
fn killed_at_any_operation_the_newest_checkpoint_is_whole_and_the_next_save_leaves_nothing_behind() {
    let mut points = 0;
    for operation in Operation::ALL {
        for number in 1.. {
            let output = tempfile::tempdir().unwrap();
            let output = output.path();
            [4, 8].into_iter().for_each(|step| save(&Watch::default(), output, step).unwrap());
            let what = format!("{operation}=kill@{number}");
            let ended = saved_by_a_child(output, &what);
            if ended.status.success() {
                assert!(number > 1, "{operation} is never reached: {}", String::from_utf8_lossy(&ended.stdout));
                break;
            }
            assert_eq!(ended.status.signal(), Some(9), "{what}: {}", String::from_utf8_lossy(&ended.stdout));
            points += 1;
            let committed = operation >= Operation::ManifestSyncFolder;
            check(output, if committed { &[12] } else { &[8] }, &what);
            // The training goes on: the same step again where it was not committed, and one more.
            let next: &[u64] = if committed { &[16, 20] } else { &[12, 16, 20] };
            next.iter().for_each(|step| save(&Watch::default(), output, *step).unwrap());
            check(output, &[20], &what);
            // What was killed while it wrote under a temporary name is in a folder that is deleted with its step.
            assert_eq!(names(output), clean(&[16, 20]), "{what}");
        }
    }
    assert!(points >= 20, "{points} points");
}

#[test]
fn an_error_of_any_operation_is_told_with_its_file_and_leaves_the_checkpoint_before_and_no_scrap() {
    for errno in ["ENOSPC", "EIO", "EROFS", "EACCES"] {
        for operation in Operation::ALL {
            let output = tempfile::tempdir().unwrap();
            let output = output.path();
            [4, 8].into_iter().for_each(|step| save(&Watch::default(), output, step).unwrap());
            let what = format!("{operation}={errno}@1");
            let result = save(&Watch::new(what.parse().unwrap()), output, 12);
            if operation >= Operation::Delete {
                // An old one that cannot be deleted is no reason to fail.
                result.unwrap();
                check(output, &[12], &what);
            } else {
                let error = result.unwrap_err();
                assert!(matches!(error, CheckpointError::Io { .. }), "{what}: {error}");
                assert!(error.to_string().contains("step-000000012"), "{what}: {error}");
                check(output, &[8], &what);
                assert_eq!(names(output), clean(&[4, 8]), "{what}");
            }
            save(&Watch::default(), output, 16).unwrap();
            check(output, &[16], &what);
        }
    }
}

#[test]
fn a_manifest_of_shares_that_were_given_up_is_not_created() {
    let output = tempfile::tempdir().unwrap();
    save(&Watch::default(), output.path(), 4).unwrap();
    let folder = paths::checkpoint_folder(output.path(), "clip", Step(4));
    let manifest = super::manifest(&folder).unwrap();
    remove(&Watch::default(), &folder).unwrap();
    let error = create_manifest(&Watch::default(), &folder, Rank(0), &manifest).unwrap_err();
    assert!(matches!(error, CheckpointError::GivenUp { .. }), "{error}");
    assert!(newest(output.path(), "clip").unwrap().is_none());
}
