//! Machines come and go in mid-training: the global batch and the order of samples stay what they are, and no step is lost while
//! one rank lives.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use rustix::process::Signal;
use tests::{Cluster, Job, Recipe, signal};

/// No checkpoint before the last step: whatever goes on comes from memory.
fn recipe(steps: u64, elastic: &str) -> Recipe {
    Recipe { steps, every_steps: 10_000, max_failures: 5, elastic: elastic.to_owned(), ..Recipe::default() }
}

/// Adds workers whose trainers take at least a fifth of a second for a step: what happens meanwhile happens before the last one.
fn start(cluster: &mut Cluster<'_>, workers: &[&str]) {
    workers.iter().for_each(|worker| cluster.worker_with(worker, &[], "clip.step=slow:200@1"));
}

#[test]
fn three_machines_become_one_and_three_again() {
    let recipe = recipe(100, "min_ranks = 1\nmax_ranks = 3\ngrace_s = 0");
    let job = Job::new(&recipe);
    let mut cluster = Cluster::start(&job);
    start(&mut cluster, &["a", "b", "c"]);
    let id = cluster.launch(3);
    job.wait_for_step(20);
    // The machine of the last rank, then that of rank 0.
    cluster.lose_machine("c");
    let reached = cluster.wait_for_ranks(&id, &["a", "b"]);
    job.wait_for_step(reached + 10);
    cluster.lose_machine("a");
    let reached = cluster.wait_for_ranks(&id, &["b"]);
    job.wait_for_step(reached + 10);
    // Who is there first has the lower rank.
    start(&mut cluster, &["a"]);
    cluster.wait_for_session("a");
    start(&mut cluster, &["c"]);
    let reached = cluster.wait_for_ranks(&id, &["b", "a", "c"]);
    job.wait_for_step(reached + 10);
    cluster.finish(&id);
    job.check_undisturbed(&recipe, 3, 1e-5, 1);
}

#[test]
fn a_training_whose_moments_are_in_shares_grows_without_a_step_lost() {
    let clip = "ema = { decay = 0.9 }".to_owned();
    let recipe = Recipe { sharded: true, clip, ..recipe(60, "min_ranks = 2\nmax_ranks = 3\ngrace_s = 0") };
    let job = Job::new(&recipe);
    let mut cluster = Cluster::start(&job);
    start(&mut cluster, &["a", "b"]);
    let id = cluster.launch(2);
    job.wait_for_step(10);
    start(&mut cluster, &["c"]);
    let reached = cluster.wait_for_ranks(&id, &["a", "b", "c"]);
    job.wait_for_step(reached + 10);
    cluster.finish(&id);
    job.check_undisturbed(&recipe, 3, 1e-5, 0);
}

#[test]
fn a_spare_takes_a_killed_ones_rank() {
    let recipe = recipe(80, "min_ranks = 2\nspares = 1");
    let job = Job::new(&recipe);
    let mut cluster = Cluster::start(&job);
    start(&mut cluster, &["a", "b", "c"]);
    let id = cluster.launch(2);
    let spare = || (cluster.json(&["status", &id])["spares"] == 1).then_some(());
    tests::wait_for(&job.output().join("clip"), "a spare", std::time::Duration::from_secs(60), spare);
    let reached = job.steps().last().map_or(0, |step| step.step);
    job.wait_for_step(reached + 10);
    let killed = cluster.json(&["status", &id])["ranks"][1]["pid"].as_i64().unwrap();
    signal(i32::try_from(killed).unwrap(), Signal::KILL);
    let reached = cluster.wait_for_ranks(&id, &["a", "c"]);
    job.wait_for_step(reached + 4);
    cluster.finish(&id);
    job.check_undisturbed(&recipe, 2, 0.0, 0);
}

#[test]
fn a_worker_that_is_not_heard_of_for_its_lease_costs_its_ranks_nothing() {
    let recipe = recipe(100, "");
    let job = Job::new(&recipe);
    let mut cluster = Cluster::start(&job);
    start(&mut cluster, &["a", "b"]);
    let id = cluster.launch(2);
    job.wait_for_step(10);
    let daemon = cluster.machine("b")[0];
    signal(daemon, Signal::STOP);
    cluster.wait_for_event(&id, "they are left alone");
    let reached = job.steps().last().unwrap().step;
    job.wait_for_step(reached + 10);
    signal(daemon, Signal::CONT);
    cluster.finish(&id);
    job.check_undisturbed(&recipe, 2, 0.0, 0);
    let status = cluster.json(&["status", &id]);
    assert_eq!(status["failures"], serde_json::json!([]), "nothing was lost");
    assert_eq!(status["generation"], job.steps()[0].generation, "and nothing started again");
}

#[test]
fn a_machine_that_was_lost_is_waited_for_with_the_state_in_memory() {
    let recipe = recipe(60, "");
    let job = Job::new(&recipe);
    let mut cluster = Cluster::start(&job);
    start(&mut cluster, &["a", "b"]);
    let id = cluster.launch(2);
    job.wait_for_step(10);
    cluster.lose_machine("b");
    cluster.wait_for_event(&id, "waits for 1 place");
    start(&mut cluster, &["d"]);
    cluster.wait_for_ranks(&id, &["a", "d"]);
    cluster.finish(&id);
    job.check_undisturbed(&recipe, 2, 0.0, 0);
}
