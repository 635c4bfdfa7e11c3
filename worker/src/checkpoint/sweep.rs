//! Tests: a process that is killed, and storage that fails, at every single operation of a save, of its commit and of the deletion of
//! what is old. Whatever happened, the newest checkpoint that loads is the one before or this one, whole; and the next save is as if
//! nothing had been.

use super::{CheckpointError, HostCopy, Operation, Shelf, Watch, faults::VARIABLE};
use crate::storage::{
    Limits, Storage,
    tests::{quick, server::Server},
};
use common::{
    ids::{Generation, Rank, Step, WorldSize},
    manifest::{DataCursor, FORMAT, Manifest},
    sampler::OrderSpec,
};
use std::{
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, Output},
    sync::Arc,
};
use tch::{Device, Kind, Tensor};

/// Where the child of a sweep saves.
const ROOT: &str = "LLM2CLIP_TEST_SWEEP";
/// How much.
const SIZE: &str = "LLM2CLIP_TEST_SWEEP_MEBIBYTES";
const WORLD: WorldSize = WorldSize(2);

/// A state of which a rank's share takes several writes, and of a bucket's several parts.
fn state(step: u64, mebibytes: i64) -> Vec<(String, Tensor)> {
    let numbers = |shape: &[i64]| {
        let all = Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)).view(shape);
        all * 1.5 + step as f64
    };
    vec![
        ("param.w".to_owned(), numbers(&[256 * mebibytes, 1024])),
        ("param.v".to_owned(), numbers(&[256 * mebibytes, 1024])),
        ("param.b".to_owned(), numbers(&[7])),
    ]
}

/// Where a job of the sweep has its checkpoints.
struct Place {
    /// A folder or an URL.
    root: String,
    /// What a process needs to know to get there.
    environment: Vec<(String, String)>,
    /// How long a rank's share is.
    mebibytes: i64,
}

impl Place {
    fn in_folder(folder: &Path) -> Self {
        Self { root: folder.display().to_string(), environment: Vec::new(), mebibytes: 2 }
    }

    /// `number` makes it another one than the others of the server.
    fn in_bucket(server: &Server, number: usize) -> Self {
        Self { root: format!("s3://bucket/{number}"), environment: server.environment(), mebibytes: 9 }
    }

    fn shelf(&self) -> Shelf {
        let storage = Storage::new(quick(), self.environment.clone());
        Shelf::open(&Arc::new(storage), Path::new(&self.root), "clip").unwrap()
    }

    fn save(&self, watch: &Watch, step: u64) -> Result<(), CheckpointError> {
        save(watch, &self.shelf(), step, self.mebibytes)
    }

    /// Saves without faults.
    fn saves(&self, steps: &[u64]) {
        steps.iter().for_each(|step| self.save(&Watch::default(), *step).unwrap());
    }

    /// Runs [`child`] in a process of its own.
    fn save_in_a_child(&self, faults: &str) -> Output {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "checkpoint::sweep::child", "--ignored", "--test-threads", "1"]);
        command.env(ROOT, &self.root).env(SIZE, self.mebibytes.to_string()).env(VARIABLE, faults);
        command.env("OMP_NUM_THREADS", "1").envs(self.environment.iter().cloned()).output().unwrap()
    }

    /// The newest checkpoint is whole, and of one of these steps; returns which. Every other that counts as one is whole, too.
    fn check(&self, among: &[u64], what: &str) -> u64 {
        let shelf = self.shelf();
        let loaded = shelf.newest().unwrap().unwrap();
        let step = loaded.manifest.step.0;
        assert!(among.contains(&step), "{what}: step {step}");
        for (name, tensor) in state(step, self.mebibytes) {
            assert_eq!(loaded.tensor(&name).unwrap(), tensor, "{what}: {name}");
        }
        for step in shelf.committed().unwrap() {
            shelf.read(step).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        step
    }

    /// What there is of checkpoints, by name.
    fn names(&self) -> Vec<(u64, String)> {
        let medium = self.shelf().0;
        let files = |step| medium.files(step).unwrap().into_iter().map(move |name| (step.0, name));
        let mut names: Vec<(u64, String)> = medium.steps().unwrap().into_iter().flat_map(files).collect();
        names.sort();
        names
    }
}

/// A whole save, as ranks and the coordinator bring it about; a failed one is given up as they do it.
fn save(watch: &Watch, shelf: &Shelf, step: u64, mebibytes: i64) -> Result<(), CheckpointError> {
    let shares = || {
        let copy = |rank| HostCopy::take(&state(step, mebibytes), rank, WORLD, Generation(1));
        let share = |rank| shelf.write(watch, Step(step), &copy(rank));
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
        shelf.create_manifest(watch, Rank(0), &manifest)
    };
    match shares() {
        Ok(()) => shelf.retire(watch, Step(step), 2),
        Err(error) => {
            let _ = shelf.remove(watch, Step(step));
            return Err(error);
        }
    }
    Ok(())
}

/// As a healthy history leaves it.
fn clean(steps: &[u64]) -> Vec<(u64, String)> {
    let of = |step: &u64| {
        let names = ["manifest.json", "rank-00000-gen-00001.safetensors", "rank-00001-gen-00001.safetensors"];
        names.map(|name| (*step, name.to_owned()))
    };
    steps.iter().flat_map(of).collect()
}

#[test]
#[ignore = "no test of its own: the process that the sweep starts by this name, and kills"]
fn child() {
    let (Ok(root), Ok(size)) = (std::env::var(ROOT), std::env::var(SIZE)) else { return };
    let watch = Watch::new(super::Faults::from_environment().unwrap());
    let storage = Arc::new(Storage::from_environment(Limits::default()));
    let shelf = Shelf::open(&storage, Path::new(&root), "clip").unwrap();
    save(&watch, &shelf, 12, size.parse().unwrap()).unwrap();
}

/// Kills a save at each number of each of these operations (of pieces that are written, at every `stride`th), once in a place of its own,
/// and looks at what is left. `committed` are the operations behind the commit. Returns how often.
fn killed_at_each(
    operations: &[Operation],
    committed: &[Operation],
    stride: usize,
    place: impl Fn(usize) -> Place,
) -> usize {
    let mut points = 0;
    for operation in operations {
        for number in (1..).step_by(if *operation == Operation::Write { stride } else { 1 }) {
            let place = place(points);
            place.saves(&[4, 8]);
            let what = format!("{operation}=kill@{number}");
            let ended = place.save_in_a_child(&what);
            points += 1;
            if ended.status.success() {
                assert!(number > 1, "{operation} is never reached: {}", String::from_utf8_lossy(&ended.stdout));
                break;
            }
            assert_eq!(ended.status.signal(), Some(9), "{what}: {}", String::from_utf8_lossy(&ended.stdout));
            let committed = committed.contains(operation);
            place.check(if committed { &[12] } else { &[8] }, &what);
            // The training goes on: the same step again where it was not committed, and one more.
            place.saves(if committed { &[16] } else { &[12, 16] });
            place.check(&[16], &what);
            // What was killed while it wrote under a temporary name is in a folder that is deleted with its step.
            assert_eq!(place.names(), clean(&[12, 16]), "{what}");
        }
    }
    points
}

#[test]
fn killed_at_any_operation_the_newest_checkpoint_is_whole_and_the_next_save_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let committed = [Operation::ManifestSyncFolder, Operation::Delete, Operation::DeleteFolder];
    let place = |number: usize| Place::in_folder(&folder.path().join(number.to_string()));
    let points = killed_at_each(&Operation::ALL, &committed, 1, place);
    assert!(points >= 33, "{points} points");
}

#[test]
fn killed_at_any_request_to_a_bucket_the_newest_checkpoint_is_whole_and_the_next_save_leaves_nothing_behind() {
    let server = Server::start();
    let place = |number| Place::in_bucket(&server, number);
    let points = killed_at_each(&OF_BUCKETS, &[Operation::Delete], 5, place);
    assert!(points >= 14, "{points} points");
}

/// What is done for a checkpoint in a bucket.
const OF_BUCKETS: [Operation; 5] =
    [Operation::Create, Operation::Write, Operation::Sync, Operation::ManifestCreate, Operation::Delete];

#[test]
fn an_error_of_any_operation_is_told_with_its_file_and_leaves_the_checkpoint_before_and_no_scrap() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    let mut number = 0;
    for errno in ["ENOSPC", "EIO", "EROFS", "EACCES"] {
        for (operations, is_bucket) in [(Operation::ALL.as_slice(), false), (OF_BUCKETS.as_slice(), true)] {
            for operation in operations {
                number += 1;
                let place = if is_bucket {
                    Place::in_bucket(&server, number)
                } else {
                    Place::in_folder(&folder.path().join(number.to_string()))
                };
                place.saves(&[4, 8]);
                let what = format!("{operation}={errno}@1");
                let result = place.save(&Watch::new(what.parse().unwrap()), 12);
                if *operation >= Operation::Delete {
                    // An old one that cannot be deleted is no reason to fail.
                    result.unwrap();
                    place.check(&[12], &what);
                } else {
                    let error = result.unwrap_err();
                    assert!(matches!(error, CheckpointError::Io { .. }), "{what}: {error}");
                    assert!(error.to_string().contains("step-000000012"), "{what}: {error}");
                    place.check(&[8], &what);
                    assert_eq!(place.names(), clean(&[4, 8]), "{what}");
                }
                place.saves(&[16]);
                place.check(&[16], &what);
            }
        }
    }
}

#[test]
fn a_manifest_of_shares_that_were_given_up_is_not_created() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    for place in [Place::in_folder(folder.path()), Place::in_bucket(&server, 0)] {
        place.saves(&[4]);
        let shelf = place.shelf();
        let manifest = shelf.manifest(Step(4)).unwrap();
        shelf.remove(&Watch::default(), Step(4)).unwrap();
        let error = shelf.create_manifest(&Watch::default(), Rank(0), &manifest).unwrap_err();
        assert!(matches!(error, CheckpointError::GivenUp { .. }), "{error}");
        assert!(shelf.newest().unwrap().is_none());
    }
}
