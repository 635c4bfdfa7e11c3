//! Trainers that are lost together, and a daemon whose trainers are not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use rustix::process::Signal;
use std::time::Instant;
use tests::{Cluster, Job, Recipe, signal};

/// No checkpoint before the last step: whatever goes on comes from memory.
fn recipe(steps: u64) -> Recipe {
    Recipe { steps, every_steps: 10_000, max_failures: 5, ..Recipe::default() }
}

const SLOW: &str = "clip.step=slow:200@1";

#[test]
fn all_trainers_of_a_machine_are_killed_at_once_and_no_step_is_lost() {
    let recipe = recipe(80);
    let job = Job::new(&recipe);
    let mut cluster = Cluster::start(&job);
    cluster.worker_with("a", &["--trainers", "2"], SLOW);
    cluster.worker_with("b", &[], SLOW);
    let id = cluster.launch(3);
    let kill = |worker: &str, after: u64| {
        job.wait_for_step(after);
        let (before, status) = (cluster.trainers(&id), cluster.json(&["status", &id]));
        let here = |rank: &usize| status["ranks"][rank]["worker"] == worker;
        let (reached, killed) = (job.steps().last().unwrap().step, Instant::now());
        (0..3).filter(here).for_each(|rank| signal(before[rank], Signal::KILL));
        job.wait_for_step(reached + 2);
        eprintln!("a new step {:.2} s after the trainers of {worker} were killed", killed.elapsed().as_secs_f64());
        job.wait_for_step(reached + 4);
        let after = cluster.trainers(&id);
        (0..3).for_each(|rank| {
            assert_eq!(before[rank] != after[rank], here(&rank), "rank {rank}: {before:?}, {after:?}")
        });
        u64::from(here(&0))
    };
    let first = kill("a", 10) + kill("b", 25) + kill("a", 40);
    cluster.finish(&id);
    assert_eq!(job.trainers_started(), 3 + 5);
    // Of the metrics, those of the newest step and of the one before, which had not been read, may go with their rank 0.
    job.check_undisturbed(&recipe, 3, 0.0, 2 * first);
}

#[test]
#[ignore = "takes minutes: make long"]
fn a_daemon_that_is_killed_costs_no_step_and_takes_its_trainer_up_again() {
    let recipe = recipe(120);
    let job = Job::new(&recipe);
    let mut cluster = Cluster::start(&job);
    cluster.worker_with("a", &[], SLOW);
    cluster.worker_with("b", &[], SLOW);
    let id = cluster.launch(2);
    job.wait_for_step(10);
    let before = cluster.trainers(&id);
    for _ in 0..10 {
        let reached = job.steps().last().unwrap().step;
        cluster.lose_daemon("b");
        cluster.wait_for_no_session("b");
        job.wait_for_step(reached + 3);
        let began = Instant::now();
        cluster.worker_with("b", &[], SLOW);
        cluster.wait_for_session("b");
        let took = began.elapsed();
        eprintln!("its trainer was taken up {:.2} s after the next daemon was started", took.as_secs_f64());
        assert!(took.as_secs_f64() <= 5.0, "{took:?}");
        assert_eq!(cluster.trainers(&id), before, "the same processes");
    }
    cluster.finish(&id);
    let status = cluster.json(&["status", &id]);
    assert_eq!(status["failures"], serde_json::json!([]), "nothing was lost");
    assert_eq!(job.trainers_started(), 2, "and nothing started again");
    job.check_undisturbed(&recipe, 2, 0.0, 0);
}
