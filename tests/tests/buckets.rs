//! Checkpoints in a bucket: as good as those in a folder, through every death that they are there for.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use rustix::process::Signal;
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::PathBuf, process::Output, time::Duration};
use tests::{Bucket, Job, Recipe, family, losses, signal, until};

/// Where the job of a scenario keeps its checkpoints.
const PLACE: &str = "s3://bucket/runs/scenario";

fn kept(recipe: Recipe) -> Recipe {
    Recipe { checkpoints: Some(PLACE.to_owned()), ..recipe }
}

fn job(bucket: &Bucket, recipe: &Recipe) -> Job {
    Job::with_environment(recipe, bucket.environment())
}

fn undisturbed(recipe: &Recipe) -> BTreeMap<u64, f64> {
    let job = Job::new(&Recipe { checkpoints: None, ..recipe.clone() });
    job.run(2);
    losses(&job.steps())
}

/// The folder of the stage's objects.
fn stage(bucket: &Bucket) -> PathBuf {
    bucket.objects().join("runs/scenario/clip")
}

/// The steps that have a manifest.
fn committed(bucket: &Bucket) -> Vec<String> {
    let folders = fs::read_dir(stage(bucket)).into_iter().flatten().map(|entry| entry.unwrap());
    let whole = folders.filter(|folder| folder.path().join("manifest.json").exists());
    let mut names: Vec<String> = whole.map(|folder| folder.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn wait_for(bucket: &Bucket, step: &str) {
    let there = || committed(bucket).iter().any(|name| name == step);
    assert!(until(Duration::from_secs(120), there), "{step} was not committed: {:?}", committed(bucket));
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn contains(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
}

#[test]
fn a_job_keeps_its_checkpoints_in_a_bucket_and_whoever_asks_finds_them_there() {
    let bucket = Bucket::start();
    let recipe = kept(Recipe { steps: 16, ..Recipe::default() });
    let job = job(&bucket, &recipe);
    let run = job.llm2clip(&["run", job.recipe().to_str().unwrap(), "--workers", "2"]);
    assert!(run.status.success(), "{}", said(&run));
    contains(&said(&run), &["checkpoint  s3://bucket/runs/scenario/clip/step-000000016"]);
    assert_eq!(committed(&bucket), ["step-000000012", "step-000000016"], "`keep` holds there, too");
    let beside = fs::read_dir(job.output().join("clip")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(beside.into_iter().all(|name| !name.to_str().unwrap().starts_with("step-")), "and nowhere else");
    assert_eq!(losses(&job.steps()), undisturbed(&recipe));

    let output = job.output();
    for place in [PLACE, "s3://bucket/runs/scenario/clip", output.to_str().unwrap()] {
        let verified = job.llm2clip(&["ckpt", "verify", place, "-o", "json"]);
        assert_eq!(verified.status.code(), Some(0), "{}", said(&verified));
        let document: Value = serde_json::from_slice(&verified.stdout).unwrap();
        let steps: Vec<_> = document["checkpoints"].as_array().unwrap().iter().map(|one| one["step"].clone()).collect();
        assert_eq!(steps, [12, 16], "{place}");
    }
    let one = job.llm2clip(&["ckpt", "ls", "s3://bucket/runs/scenario/clip/step-000000012"]);
    contains(&said(&one), &["clip", "12", "committed"]);

    for (from, to) in
        [(PLACE, "a"), ("s3://bucket/runs/scenario/clip/step-000000016", "b"), (output.to_str().unwrap(), "c")]
    {
        let exported = job.llm2clip(&["export", from, "--to", to]);
        assert!(exported.status.success(), "{from}: {}", said(&exported));
    }
    let weights = |to: &str| fs::read(job.folder().join(to).join("model.safetensors")).unwrap();
    assert!(weights("a") == weights("b") && weights("b") == weights("c"));

    // A flipped byte is found, and named.
    let share = stage(&bucket).join("step-000000016/rank-00001-gen-00002.safetensors");
    let mut bytes = fs::read(&share).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&share, bytes).unwrap();
    let verified = job.llm2clip(&["ckpt", "verify", PLACE]);
    assert_eq!(verified.status.code(), Some(1));
    contains(&said(&verified), &["step-000000016/rank-00001-gen-00002.safetensors is damaged", "verified"]);
}

#[test]
fn a_machine_that_is_lost_whole_goes_on_from_the_bucket_as_if_nothing_had_been() {
    let bucket = Bucket::start();
    let recipe = kept(Recipe { steps: 40, ..Recipe::default() });
    let job = job(&bucket, &recipe);
    let expected = undisturbed(&recipe);
    let mut run = job.start(2);
    wait_for(&bucket, "step-000000012");
    // Everything at once: there is nobody's memory to go on from.
    let all = family(run.id().cast_signed());
    all.iter().for_each(|pid| signal(*pid, Signal::STOP));
    all.iter().for_each(|pid| signal(*pid, Signal::KILL));
    run.wait().unwrap();
    let newest = committed(&bucket).pop().unwrap();
    // What it was about to write is damaged as well: the one before is taken, and that is said.
    let share = fs::read_dir(stage(&bucket).join(&newest)).unwrap().map(|entry| entry.unwrap().path());
    let share = share.into_iter().find(|path| path.extension().is_some_and(|end| end == "safetensors")).unwrap();
    fs::write(&share, b"short").unwrap();
    let (code, text) = job.say(&["resume"]);
    assert_eq!(code, Some(0), "{text}");
    let (_, events) = job.say(&["events"]);
    contains(&events, &[&newest, "safetensors is damaged", "the training goes on from the checkpoint of step "]);
    assert_eq!(losses(&job.steps()), expected);
    let aside = fs::read_dir(stage(&bucket)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let aside: Vec<String> = aside.filter(|name| name.starts_with("discarded-gen-")).collect();
    assert!(aside.iter().any(|name| name.ends_with(&newest)), "what was damaged is left to the user: {aside:?}");
    assert_eq!(committed(&bucket).last().unwrap(), "step-000000040");
}

#[test]
fn a_bucket_that_is_away_for_a_while_is_an_alarm_and_no_end() {
    let mut bucket = Bucket::start();
    let recipe = kept(Recipe { steps: 90, max_failures: 1, ..Recipe::default() });
    let job = job(&bucket, &recipe);
    let run = job.start(2);
    wait_for(&bucket, "step-000000008");
    bucket.kill();
    let alarm = || job.json("status")["alarm"] != Value::Null;
    assert!(until(Duration::from_secs(60), alarm), "no alarm: {}", job.json("status"));
    let moves = |what: &str| {
        let before = job.steps().len();
        assert!(until(Duration::from_secs(30), || job.steps().len() >= before + 8), "{what}: it stands still");
    };
    moves("the bucket is away");
    // What its peer holds in memory is all there is, and enough.
    signal(job.trainers()[1], Signal::KILL);
    moves("a trainer was killed meanwhile");
    bucket.restart();
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    contains(&said(&output), &["ALARM", "checkpoints are written again"]);
    assert_eq!(committed(&bucket).last().unwrap(), "step-000000090");
    let verified = job.llm2clip(&["ckpt", "verify", PLACE]);
    assert_eq!(verified.status.code(), Some(0), "{}", said(&verified));
    assert_eq!(job.steps().len(), 90, "no step was taken twice");
    assert_eq!(losses(&job.steps()), undisturbed(&recipe));
}

#[test]
fn a_rank_killed_at_a_request_for_a_checkpoint_costs_neither_a_step_nor_a_checkpoint() {
    let recipe = kept(Recipe { steps: 24, max_failures: 3, ..Recipe::default() });
    let expected = undisturbed(&recipe);
    for fault in ["sync=kill@2/1/2", "manifest-create=kill@2/0/2"] {
        let bucket = Bucket::start();
        let mut environment = bucket.environment();
        environment.push(("LLM2CLIP_STORAGE_FAULTS".to_owned(), fault.to_owned()));
        let job = Job::with_environment(&recipe, environment);
        let run = job.llm2clip(&["run", job.recipe().to_str().unwrap(), "--workers", "2"]);
        assert_eq!(run.status.code(), Some(0), "{fault}: {}", said(&run));
        contains(&said(&run), &["killed by signal 9"]);
        let found = losses(&job.steps());
        // The last line of rank 0's metrics may go with it.
        assert!(expected.len() - found.len() <= 1, "{fault}: {} lines are missing", expected.len() - found.len());
        found.iter().for_each(|(step, loss)| assert_eq!(*loss, expected[step], "{fault}: step {step}"));
        assert_eq!(committed(&bucket), ["step-000000020", "step-000000024"], "{fault}");
        let verified = job.llm2clip(&["ckpt", "verify", PLACE]);
        assert_eq!(verified.status.code(), Some(0), "{fault}: {}", said(&verified));
    }
}

#[test]
fn a_bucket_that_lets_nobody_in_is_named_with_the_variable_that_is_missing() {
    // Without any key the machine's own role would be asked for, over a network that a test has no business in.
    let half = vec![("AWS_ACCESS_KEY_ID".to_owned(), "tester".to_owned())];
    let job = Job::with_environment(&kept(Recipe { steps: 4, storage_wait_s: 2, ..Recipe::default() }), half);
    let run = job.llm2clip(&["run", job.recipe().to_str().unwrap()]);
    assert_ne!(run.status.code(), Some(0));
    contains(&said(&run), &["s3://bucket/runs/scenario/clip", "AWS_SECRET_ACCESS_KEY is not"]);
    let listed = job.llm2clip(&["ckpt", "ls", PLACE]);
    assert_eq!(listed.status.code(), Some(1));
    contains(&said(&listed), &["s3://bucket/runs/scenario", "AWS_SECRET_ACCESS_KEY is not"]);
}
