//! A coordinator, workers and a launch, as on a cluster: what waits says why, and the loss of the coordinator is not the
//! loss of the training.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use tests::{Cluster, Job, Recipe, losses};

#[test]
fn a_launch_waits_for_workers_and_survives_its_coordinator() {
    let recipe = Recipe { steps: 40, ..Recipe::default() };
    let job = Job::new(&recipe);
    let mut cluster = Cluster::start(&job);
    let launched = cluster.json(&["launch", job.recipe().to_str().unwrap(), "--ranks", "2"]);
    let id = launched["job"].as_str().unwrap().to_owned();
    let why = String::from_utf8(cluster.llm2clip(&["why", &id]).stdout).unwrap();
    assert!(why.contains("waits") && why.contains('2') && why.contains('0'), "{why}");

    cluster.worker("a");
    cluster.worker("b");
    job.wait_for_checkpoint(8);
    let workers = cluster.json(&["workers"]);
    let connected = workers["workers"].as_array().unwrap().iter().filter(|worker| worker["connected"] == true).count();
    assert_eq!(connected, 2, "{workers}");

    cluster.kill_coordinator();
    let killed_at = job.steps().last().unwrap().step;
    // Trained without a coordinator.
    job.wait_for_step(killed_at + 4);
    cluster.restart_coordinator();
    // Ends when the job has.
    let events = cluster.llm2clip(&["events", &id, "--follow"]);
    let said = String::from_utf8_lossy(&events.stdout).into_owned();
    let status = cluster.json(&["status", &id]);
    assert_eq!(status["phase"]["phase"], "succeeded", "{status}\n{said}");
    assert_eq!(status["failures"], serde_json::json!([]), "nothing was lost");
    assert!(job.steps().iter().all(|step| step.generation == job.steps()[0].generation), "no trainer was restarted");

    let undisturbed = Job::new(&recipe);
    undisturbed.run(2);
    assert_eq!(losses(&job.steps()), losses(&undisturbed.steps()));
}
