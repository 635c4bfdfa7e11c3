//! Machines that are taken away, drained, or not trusted any more: their jobs write a checkpoint and go on elsewhere, and no
//! failure is counted for it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use rustix::process::Signal;
use serde_json::Value;
use tests::{Cluster, Job, Recipe, losses};

fn recipe() -> Recipe {
    // No checkpoint before the last step, but those of a machine that is left.
    Recipe { steps: 40, every_steps: 1_000, ..Recipe::default() }
}

/// A cluster of three workers, of which a job of two ranks takes the first two.
fn launch<'a>(job: &'a Job, arguments: &[&str], failpoints: &str) -> (Cluster<'a>, String) {
    let mut cluster = Cluster::start(job);
    cluster.worker_with("a", arguments, failpoints);
    cluster.worker("b");
    let launched = cluster.json(&["launch", job.recipe().to_str().unwrap(), "--ranks", "2"]);
    let id = launched["job"].as_str().unwrap().to_owned();
    job.wait_for_step(10);
    cluster.worker("c");
    (cluster, id)
}

/// Waits for the job's end; its status, and its events as text.
fn finish(cluster: &Cluster<'_>, id: &str) -> (Value, String) {
    let events = cluster.llm2clip(&["events", id, "--follow"]);
    (cluster.json(&["status", id]), String::from_utf8_lossy(&events.stdout).into_owned())
}

fn workers_of(status: &Value) -> Vec<String> {
    status["ranks"].as_array().unwrap().iter().map(|rank| rank["worker"].as_str().unwrap().to_owned()).collect()
}

fn barred(workers: &Value, id: &str) -> Value {
    let all = workers["workers"].as_array().unwrap();
    all.iter().find(|worker| worker["worker"] == id).unwrap()["barred"].clone()
}

/// The job ended well on the workers that are left, from a checkpoint, and every loss is as without all that.
fn check(job: &Job, status: &Value, events: &str, kind: &str) {
    assert_eq!(status["phase"]["phase"], "succeeded", "{status}\n{events}");
    assert_eq!(workers_of(status), ["b", "c"], "{events}");
    assert_eq!(status["failures"], serde_json::json!([]), "nobody is to blame: {events}");
    assert!(events.contains(kind) && events.contains("goes on elsewhere"), "{events}");
    let undisturbed = Job::new(&recipe());
    undisturbed.run(2);
    assert_eq!(losses(&job.steps()), losses(&undisturbed.steps()));
}

#[test]
fn a_machine_that_is_taken_away_with_notice_costs_no_step_and_no_failure() {
    let job = Job::new(&recipe());
    let (mut cluster, id) = launch(&job, &["--preempt-grace-s", "60"], "");
    tests::signal(cluster.machine("a")[0], Signal::TERM);
    assert_eq!(cluster.wait_for_worker("a"), Some(0), "it leaves when its trainers have");
    let (status, events) = finish(&cluster, &id);
    check(&job, &status, &events, "preempted");
}

#[test]
fn a_drained_machine_gets_no_new_trainers_and_its_job_goes_on_elsewhere() {
    let job = Job::new(&recipe());
    let (mut cluster, id) = launch(&job, &[], "");
    let unknown = cluster.llm2clip(&["drain", "nobody"]);
    assert!(
        !unknown.status.success() && String::from_utf8_lossy(&unknown.stderr).contains("there is no worker nobody")
    );
    assert_eq!(barred(&cluster.json(&["drain", "a"]), "a")["barred"], "drained");
    let (status, events) = finish(&cluster, &id);
    check(&job, &status, &events, "drained");
    cluster.kill_coordinator();
    cluster.restart_coordinator();
    cluster.wait_for_session("a");
    let lifted = cluster.json(&["undrain", "a"]);
    assert_eq!(barred(&lifted, "a"), Value::Null, "{lifted}");
}
