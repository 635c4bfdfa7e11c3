//! Storage that fails, hangs or loses what it was given: a training goes on without checkpoints, says so, and never takes a damaged one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use common::{ids::Step, manifest::Manifest};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path, time::Instant};
use tests::{Job, Recipe, losses};

const FAULTS: &str = "LLM2CLIP_STORAGE_FAULTS";

fn undisturbed(recipe: &Recipe) -> BTreeMap<u64, f64> {
    let job = Job::new(recipe);
    job.run(2);
    losses(&job.steps())
}

/// Runs a recipe with two workers whose storage has these faults; returns the exit code and what was said.
fn run(job: &Job, faults: &str) -> (Option<i32>, String) {
    let mut command = job.command(&["run", job.recipe().to_str().unwrap(), "--workers", "2"]);
    let output = command.env(FAULTS, faults).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code(), said)
}

/// The names of the stage's checkpoints.
fn checkpoints(job: &Job) -> Vec<String> {
    let entries = fs::read_dir(job.output().join("clip")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("step-")).collect();
    names.sort();
    names
}

fn verify(job: &Job) -> (Option<i32>, String) {
    let output = job.llm2clip(&["ckpt", "verify", job.output().to_str().unwrap()]);
    (
        output.status.code(),
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
    )
}

fn contains(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
}

#[test]
fn a_checkpoint_that_cannot_be_written_is_an_alarm_and_the_next_one_is_written() {
    let recipe = Recipe { steps: 16, ..Recipe::default() };
    let job = Job::new(&recipe);
    // Rank 1's first share; rank 0's manifest of the second checkpoint.
    let (code, said) = run(&job, "write=ENOSPC@1/1, manifest-write=EIO@1/0");
    assert_eq!(code, Some(0), "{said}");
    contains(&said, &["ALARM: checkpoints fail since step 4 (", "checkpoints are written again"]);
    let (_, events) = job.say(&["events"]);
    contains(
        &events,
        &[
            "no checkpoint of step 4, the training goes on: rank 1: ",
            "rank-00001-gen-00002.safetensors: No space left on device",
            "Free space",
        ],
    );
    contains(&events, &["checkpoints are written again: that of step 12", "2 are missing"]);
    assert_eq!(checkpoints(&job), ["step-000000012", "step-000000016"], "of the failed ones nothing is left");
    assert_eq!(verify(&job).0, Some(0));
    assert_eq!(job.json("status")["alarm"], Value::Null);
    assert_eq!(losses(&job.steps()), undisturbed(&recipe));
}

#[test]
fn the_last_checkpoint_is_tried_again_until_storage_takes_it() {
    let job = Job::new(&Recipe { steps: 8, ..Recipe::default() });
    // The second save, the last one, fails on rank 0, then on rank 1.
    let (code, said) = run(&job, "create=EROFS@2/0, rename=EIO@3/1");
    assert_eq!(code, Some(0), "{said}");
    contains(&said, &["ALARM: checkpoints fail since step 8", "Read-only file system"]);
    assert_eq!(checkpoints(&job), ["step-000000004", "step-000000008"]);
    assert_eq!(verify(&job).0, Some(0));
}

#[test]
fn slow_storage_holds_no_step_up_and_what_is_left_out_is_told() {
    let recipe = Recipe { steps: 40, ..Recipe::default() };
    let job = Job::new(&recipe);
    let (code, said) = run(&job, "sync=hang:12000@1/0");
    assert_eq!(code, Some(0), "{said}");
    let (_, events) = job.say(&["events"]);
    contains(
        &events,
        &["storage has been at the checkpoint of step 4 for ", "`sync` of ", "rank-00000-gen-", "step 8 is left out"],
    );
    assert_eq!(verify(&job).0, Some(0));
    let longest = longest_step(&job);
    assert!(longest < 8.0, "a step took {longest} s");
    assert_eq!(losses(&job.steps()), undisturbed(&recipe));
}

/// Seconds.
fn longest_step(job: &Job) -> f64 {
    let text = fs::read_to_string(job.output().join("clip/metrics.jsonl")).unwrap();
    let steps = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["step_s"].as_f64().unwrap());
    steps.fold(0.0, f64::max)
}

#[test]
fn storage_that_never_answers_keeps_no_stopped_job_from_its_end() {
    let recipe = Recipe { steps: 60, storage_wait_s: 3, ..Recipe::default() };
    let job = Job::new(&recipe);
    let mut command = job.command(&["run", job.recipe().to_str().unwrap(), "--workers", "2"]);
    let mut run = command.env(FAULTS, "sync=hang@3/0").spawn().unwrap();
    job.wait_for_step(21);
    assert_eq!(job.json("status")["alarm"]["newest"]["trouble"], "slow");
    let (_, why) = job.say(&["why"]);
    contains(&why, &["ALARM", "checkpoints are left out since step 16"]);
    let began = Instant::now();
    job.say(&["stop"]);
    assert_eq!(run.wait().unwrap().code(), Some(4));
    assert!(began.elapsed().as_secs() < 30, "the stop took {:?}", began.elapsed());
    let (_, why) = job.say(&["why"]);
    contains(&why, &["rank 0", "storage has not answered for ", "`sync` of ", "rank-00000-gen-", "llm2clip resume"]);
    let (code, said) = job.say(&["resume"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(losses(&job.steps()), undisturbed(&recipe));
}

#[test]
fn a_rank_killed_in_the_middle_of_a_save_or_a_commit_costs_neither_a_step_nor_a_checkpoint() {
    let recipe = Recipe { steps: 24, max_failures: 3, ..Recipe::default() };
    let expected = undisturbed(&recipe);
    // In the membership that trains first, so that the trainer that is started again is not killed as well.
    for fault in [
        "write=kill@3/1/2",
        "rename=kill@2/0/2",
        "manifest-rename=kill@2/0/2",
        "manifest-sync-folder=kill@1/0/2",
        "delete=kill@3/0/2",
    ] {
        let job = Job::new(&recipe);
        let (code, said) = run(&job, fault);
        assert_eq!(code, Some(0), "{fault}: {said}");
        contains(&said, &["killed by signal 9"]);
        let found = losses(&job.steps());
        // The last line of rank 0's metrics may go with it.
        let missing = expected.keys().filter(|step| !found.contains_key(step)).count();
        assert!(missing <= 1, "{fault}: {missing} lines are missing");
        found.iter().for_each(|(step, loss)| assert_eq!(*loss, expected[step], "{fault}: step {step}"));
        let (code, said) = verify(&job);
        assert_eq!(code, Some(0), "{fault}: {said}");
        assert_eq!(checkpoints(&job), ["step-000000020", "step-000000024"], "{fault}");
    }
}

#[test]
fn a_damaged_checkpoint_is_found_by_verify_passed_over_loudly_and_refused_when_it_is_named() {
    let recipe = Recipe { steps: 40, ..Recipe::default() };
    let job = Job::new(&recipe);
    let started = job.start(2);
    job.wait_for_checkpoint(8);
    job.say(&["stop"]);
    assert_eq!(started.wait_with_output().unwrap().status.code(), Some(4));
    let newest = job.output().join("clip").join(checkpoints(&job).pop().unwrap());
    let step = newest.file_name().unwrap().to_str().unwrap()["step-".len()..].trim_start_matches('0').to_owned();

    let parts = job.manifest(newest.strip_prefix(job.output()).unwrap().to_str().unwrap())["parts"].clone();
    let share = |rank: usize| newest.join(parts[rank]["file"].as_str().unwrap());
    let manifest = newest.join("manifest.json");
    let whole: Vec<Vec<u8>> =
        [share(0), share(1), manifest.clone()].iter().map(|path| fs::read(path).unwrap()).collect();
    let mend = || {
        [share(0), share(1), manifest.clone()]
            .iter()
            .zip(&whole)
            .for_each(|(path, bytes)| fs::write(path, bytes).unwrap())
    };
    let check = |damage: &dyn Fn(), said_of: &Path, expected: &str| {
        damage();
        let (code, said) = verify(&job);
        assert_eq!(code, Some(1), "{expected}: {said}");
        contains(&said, &[said_of.to_str().unwrap(), expected]);
        mend();
        assert_eq!(verify(&job).0, Some(0));
    };
    check(&|| fs::write(share(1), &whole[1][..whole[1].len() - 9]).unwrap(), &share(1), "its manifest says");
    check(&|| fs::remove_file(share(0)).unwrap(), &share(0), "cannot be read");
    let swapped = || [share(1), share(0)].iter().zip(&whole).for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    check(&swapped, &share(0), "");
    let text = String::from_utf8(whole[2].clone()).unwrap();
    let own = Manifest::parse(&text, Step(step.parse().unwrap())).unwrap();
    let foreign = Manifest { job: "another-1".parse().unwrap(), ..own.clone() }.to_text();
    let position = format!("\"position\": {}", own.data.position);
    let moved = text.replacen(&position, &format!("{position}0"), 1);
    check(&|| fs::write(&manifest, &moved).unwrap(), &manifest, "its BLAKE3 digest is not the one at its end");
    check(&|| fs::write(&manifest, &foreign).unwrap(), &manifest, "is of job another-1");
    check(&|| fs::write(&manifest, &text[..text.len() / 2]).unwrap(), &manifest, "it cannot be read");

    fs::write(share(1), &whole[1][..whole[1].len() - 9]).unwrap();
    let (code, said) = job.say(&["resume", "--step", &step]);
    assert_eq!(code, Some(1), "{said}");
    contains(&said, &[share(1).to_str().unwrap(), "is damaged", "its manifest says", "resume --step N"]);

    mend();
    fs::write(&manifest, &foreign).unwrap();
    // Nobody names one: the one before is taken.
    let (code, said) = job.say(&["resume"]);
    assert_eq!(code, Some(0), "{said}");
    let (_, events) = job.say(&["events"]);
    contains(
        &events,
        &["is a checkpoint of stage clip of job another-1", "the training goes on from the checkpoint of step"],
    );
    assert_eq!(losses(&job.steps()), undisturbed(&recipe));
    assert_eq!(verify(&job).0, Some(0));
}
