//! `kill -9` of a trainer in each phase of its life: no step is lost, and what is trained is an undisturbed run's in every bit.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use tests::{Job, Recipe, tensors};

/// Runs with two workers whose trainers fail like this; each of `killed` is a membership and the rank that it lost, the stage
/// `embed` being membership 1.
fn check(recipe: &Recipe, failpoints: &str, storage_faults: &str, killed: &[(u64, Option<u64>)]) {
    let job = Job::new(recipe);
    let mut command = job.command(&["run", job.recipe().to_str().unwrap(), "--workers", "2"]);
    if !failpoints.is_empty() {
        command.env("LLM2CLIP_FAILPOINTS", failpoints);
    }
    command.env("LLM2CLIP_STORAGE_FAULTS", storage_faults);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let status = job.json("status");
    let failures = status["failures"].as_array().unwrap();
    let found: Vec<(u64, Option<u64>)> =
        failures.iter().map(|failure| (failure["generation"].as_u64().unwrap(), failure["rank"].as_u64())).collect();
    assert_eq!(found, killed, "{said}");
    assert!(failures.iter().all(|failure| failure["cause"]["signal"] == 9), "{status}");
    // Who dies in its start has logged nothing yet.
    let silent = failpoints.matches("start=").count();
    assert_eq!(job.trainers_started() + silent, 2 + killed.len(), "each was started again once, and nobody else was");
    let (_, events) = job.say(&["events"]);
    assert_eq!(events.matches("in memory;").count(), killed.len(), "each time from memory: {events}");
    // Of the metrics, those of the newest step and of the one before, which had not been read, may go with their rank 0.
    let first = killed.iter().filter(|(_, rank)| *rank == Some(0)).count() as u64;
    let undisturbed = job.check_undisturbed(recipe, 2, 0.0, 2 * first);
    // What is trained, and its moments.
    let last = |job: &Job| tensors(&job.output().join(format!("clip/step-{:09}", recipe.steps)));
    assert!(last(&job) == last(&undisturbed), "what is trained differs");
}

fn recipe() -> Recipe {
    // No checkpoint before the last step: whatever goes on comes from memory.
    // Deaths that come faster than reports of steps look like no progress, of which this is not about.
    let faults = "max_no_progress = 20".to_owned();
    Recipe { steps: 40, every_steps: 10_000, max_failures: 20, faults, ..Recipe::default() }
}

#[test]
fn in_forward_then_the_next_one_in_its_start_and_the_next_one_while_it_loads() {
    let failpoints =
        "forward=kill@20/1/2, start=kill@3, load=kill@1/1/4, forward=kill@20/0/5, start=kill@6, load=kill@1/0/7";
    let killed = [(2, Some(1)), (3, Some(1)), (4, Some(1)), (5, Some(0)), (6, Some(0)), (7, Some(0))];
    check(&recipe(), failpoints, "", &killed);
}

#[test]
fn in_an_all_gather_in_an_all_reduce_and_before_the_update_of_the_optimizer() {
    let failpoints = "all-gather=kill@12/1/2, all-gather=kill@13/0/3, all-reduce=kill@12/1/4, all-reduce=kill@13/0/5, \
                      optimizer=kill@3/1/6, optimizer=kill@4/0/7";
    let killed = [(2, Some(1)), (3, Some(0)), (4, Some(1)), (5, Some(0)), (6, Some(1)), (7, Some(0))];
    check(&recipe(), failpoints, "", &killed);
}

#[test]
fn while_the_share_of_a_checkpoint_is_written() {
    let recipe = Recipe { every_steps: 6, ..recipe() };
    check(
        &recipe,
        "",
        "write=kill@1-/1/2, write=kill@1-/0/3, sync=kill@1-/1/4",
        &[(2, Some(1)), (3, Some(0)), (4, Some(1))],
    );
}
