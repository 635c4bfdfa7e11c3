//! What is killed goes on where its newest checkpoint is, with the same losses in every bit.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use rustix::process::{Pid, Signal, kill_process};
use tests::{Job, Recipe, losses};

fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn undisturbed(recipe: &Recipe) -> std::collections::BTreeMap<u64, f64> {
    let job = Job::new(recipe);
    job.run(2);
    losses(&job.steps())
}

#[test]
fn trainers_killed_by_signal_9_are_named_and_the_job_resumes_bitwise() {
    let recipe = Recipe { steps: 40, ..Recipe::default() };
    let job = Job::new(&recipe);
    let run = job.start(2);
    job.wait_for_checkpoint(8);
    for pid in job.trainers() {
        kill(pid, Signal::KILL);
    }
    let ended = run.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", String::from_utf8_lossy(&ended.stderr));

    let (_, why) = job.say(&["why"]);
    assert!(why.contains("signal 9"), "{why}");
    assert!(why.contains("rank"), "{why}");

    let (code, text) = job.say(&["resume"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(losses(&job.steps()), undisturbed(&recipe));
    let resumed = job.steps().iter().find(|step| step.generation > 2).map(|step| step.step);
    assert!(resumed.is_some_and(|step| step > 8), "it began again at step {resumed:?}");
}

#[test]
fn trainers_and_workers_killed_at_once_resume_bitwise() {
    let recipe = Recipe { steps: 40, ..Recipe::default() };
    let job = Job::new(&recipe);
    let run = job.start(2);
    job.wait_for_checkpoint(8);
    let workers = Job::workers(&run);
    assert_eq!(workers.len(), 2);
    for pid in workers.into_iter().chain(job.trainers()) {
        kill(pid, Signal::KILL);
    }
    let ended = run.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("started it again"), "{said}");
    let (code, text) = job.say(&["resume"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(losses(&job.steps()), undisturbed(&recipe));
}

#[test]
fn the_coordinator_killed_by_signal_9_resumes() {
    let recipe = Recipe { steps: 40, ..Recipe::default() };
    let job = Job::new(&recipe);
    let mut run = job.start(2);
    job.wait_for_checkpoint(8);
    run.kill().unwrap();
    run.wait().unwrap();
    let (code, text) = job.say(&["resume"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(losses(&job.steps()), undisturbed(&recipe));
}

#[test]
fn stop_writes_a_checkpoint_and_another_number_of_workers_goes_on() {
    let recipe = Recipe { steps: 40, every_steps: 1000, ..Recipe::default() };
    let job = Job::new(&recipe);
    let run = job.start(2);
    job.wait_for_step(5);
    let (code, text) = job.say(&["stop"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(run.wait_with_output().unwrap().status.code(), Some(4));
    let (code, text) = job.say(&["resume", "--workers", "1"]);
    assert_eq!(code, Some(0), "{text}");
    let (found, expected) = (losses(&job.steps()), undisturbed(&recipe));
    for (step, loss) in &expected {
        let other = found[step];
        assert!((loss - other).abs() <= 1e-4 * loss.abs(), "step {step}: {loss} undisturbed, {other} after the stop");
    }
}
