//! The path of a GPU, on a stand-in for one that is strict where a GPU goes wrong silently: every stage computes what the CPU
//! computes, and over NCCL's engine a killed rank is replaced as over the ring.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use tests::{Job, Recipe, losses, stand_in, tuning};

/// What lets trainers find a GPU.
fn environment() -> Vec<(String, String)> {
    let told = |(name, value): (&str, &std::ffi::OsStr)| (name.to_owned(), value.to_str().unwrap().to_owned());
    stand_in::compiled().environment().map(told).into()
}

/// A job whose trainers find a GPU.
fn on_a_gpu(recipe: &Recipe) -> Job {
    Job::with_environment(recipe, environment())
}

/// All that a trainer computes with: masked and paired captions in low-rank updates with dropout, blocks computed twice, a tower
/// with patches dropped and an adapter, several chunks and buckets, averaged weights.
fn recipe(precision: &str, steps: u64) -> Recipe {
    let both = format!("precision = \"{precision}\"\nlora = {{ rank = 4, alpha = 8, dropout = 0.1 }}\n");
    let again = format!("{both}activation_checkpointing = true");
    let clip = format!(
        "precision = \"{precision}\"\npatch_dropout = 0.3\nactivation_checkpointing = true\nema = {{ decay = 0.9 }}"
    );
    Recipe { steps: 2 * steps, tuning: tuning(steps, &both, &again), clip, ..Recipe::default() }
}

/// The largest relative difference of two jobs' losses, by stage.
fn apart(one: &Job, other: &Job) -> BTreeMap<&'static str, f64> {
    let of = |stage| {
        let (one, other) = (losses(&one.steps_of(stage)), losses(&other.steps_of(stage)));
        assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>(), "{stage}");
        let worst = one.iter().map(|(step, loss)| (loss - other[step]).abs() / loss.abs()).fold(0.0, f64::max);
        (stage, worst)
    };
    ["mntp", "contrast", "clip"].map(of).into()
}

fn every_stage(precision: &str, limit: f64) {
    let (cpu, gpu) = (Job::new(&recipe(precision, 6)), on_a_gpu(&recipe(precision, 6)));
    cpu.run(2);
    gpu.run(2);
    let logs = std::fs::read_dir(gpu.output().join("logs")).unwrap();
    let logs: String = logs.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    assert!(logs.contains("joined by NCCL"), "{logs}");
    let apart = apart(&gpu, &cpu);
    println!("losses on the stand-in and on the CPU in {precision} are apart by {apart:?}");
    assert!(apart.values().all(|apart| *apart < limit), "{apart:?}");
}

// The stand-in computes with the CPU's kernels, but for attention and products of bf16 to fp32, as a GPU does them.
#[test]
fn every_stage_computes_on_a_gpu_what_it_computes_on_a_cpu() {
    every_stage("fp32", 1e-5);
}

#[test]
fn every_stage_computes_on_a_gpu_what_it_computes_on_a_cpu_in_bf16() {
    every_stage("bf16", 1e-2);
}

#[test]
fn a_killed_rank_is_replaced_over_nccl_and_no_step_is_lost() {
    let recipe = Recipe { steps: 40, every_steps: 1_000, max_failures: 5, ..Recipe::default() };
    let job = on_a_gpu(&recipe);
    let run = job.start(2);
    for (number, rank) in [1, 0].into_iter().enumerate() {
        job.wait_for_step(8 + 10 * number as u64);
        let before = job.trainers();
        let pid = rustix::process::Pid::from_raw(before[rank]).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let reached = job.steps().last().unwrap().step;
        job.wait_for_step(reached + 4);
        let after = job.trainers();
        assert_ne!(after[rank], before[rank], "it was started again");
        assert_eq!(after[1 - rank], before[1 - rank], "its peer is the process that it was");
    }
    let ended = run.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
    // Rank 0 writes the lines of the metrics: its last one goes with it.
    job.check_undisturbed(&recipe, 2, 1e-4, 1);
}

/// How often the host waits for the device in a run of the recipe with so many steps a stage.
fn waits(steps: u64) -> BTreeMap<String, u64> {
    // One checkpoint a stage.
    let recipe = Recipe { every_steps: 1_000, ..recipe("bf16", steps) };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("waits");
    let mut environment = environment();
    environment.push(("LLM2CLIP_STAND_IN_WAITS".to_owned(), file.to_str().unwrap().to_owned()));
    Job::with_environment(&recipe, environment).run(1);
    let mut times = BTreeMap::new();
    std::fs::read_to_string(file).unwrap().lines().for_each(|what| *times.entry(what.to_owned()).or_default() += 1);
    times
}

// Events are passed long since when they are waited for: the end of the step before, and of the copy from pinned memory two batches
// before. A copy that is waited for would stop the device until the host has told it more.
#[test]
fn a_step_never_waits_for_a_copy() {
    let (few, many) = (waits(4), waits(9));
    println!("the host waits for {few:?} in 4 steps a stage, for {many:?} in 9");
    for what in ["a copy to the device", "a copy to the host", "a number", "a stream", "the device"] {
        assert_eq!(few.get(what), many.get(what), "{what}");
    }
    assert!(few["an event"] < many["an event"]);
}
