//! `kill -9` of a coordinator at every write to its store, before it is durable and after: the training does not notice, what the
//! next coordinator finds is what was written, and nothing is launched twice.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(dead_code, reason = "what the store's own tests need")]
#[path = "../../coordinator/src/store/etcd/tests/server.rs"]
mod etcd;

use coordinator::store::{RedbStore, Revision, Store as _};
use etcd::Etcd;
use serde_json::Value;
use std::{path::Path, time::Duration};
use tests::{Cluster, Job, Recipe};
use tokio::runtime::Runtime;

/// In mid-training one trainer is lost on purpose, once; steps take at least 0.4 s, so that a coordinator dies many times meanwhile.
const FAILPOINTS: &str = "clip.step=kill@20/1/2, clip.step=slow:400@1";
/// Sooner than a coordinator writes what it puts off, and later.
const SOON: Duration = Duration::from_secs(3);
const LATE: Duration = Duration::from_secs(12);

fn recipe(steps: u64, every_steps: u64) -> Recipe {
    Recipe { steps, every_steps, max_failures: 1, ..Recipe::default() }
}

/// All that a coordinator has stored, and the store's newest change.
fn stored(runtime: &Runtime, state: &Path) -> (Revision, Vec<(String, Vec<u8>)>) {
    runtime.block_on(async {
        let listing = RedbStore::open(state).unwrap().list("/").await.unwrap();
        (listing.revision, listing.entries.into_iter().map(|entry| (entry.key, entry.value)).collect())
    })
}

fn launch(cluster: &Cluster<'_>, job: &Job) -> String {
    let launched = cluster.json(&["launch", job.recipe().to_str().unwrap(), "--ranks", "2"]);
    launched["job"].as_str().unwrap().to_owned()
}

/// It ended well; the lost trainer is the only one that was ever lost or started again, and every event is there once.
fn check(cluster: &Cluster<'_>, job: &Job, id: &str, recipe: &Recipe) {
    let status = cluster.json(&["status", id]);
    assert_eq!(status["phase"]["phase"], "succeeded", "{status}");
    let failures = status["failures"].as_array().unwrap();
    assert!(failures.len() == 1 && failures[0]["generation"] == 2 && failures[0]["rank"] == 1, "{status}");
    assert_eq!(status["generation"], 3, "embed, clip, and clip without the lost one");
    assert_eq!(job.trainers_started(), 3, "two, and one in the place of the lost one");
    let events = cluster.json(&["events", id]);
    let numbers = events["events"].as_array().unwrap().iter().map(|event| event["sequence"].as_u64().unwrap());
    let numbers: Vec<u64> = numbers.collect();
    assert!(numbers.windows(2).all(|two| two[0] + 1 == two[1]), "{numbers:?}");
    job.check_undisturbed(recipe, 2, 0.0, 0);
}

#[test]
fn a_coordinator_dies_before_and_after_every_write_and_the_job_ends_as_if_it_had_not() {
    let recipe = recipe(40, 10);
    let (job, runtime) = (Job::new(&recipe), Runtime::new().unwrap());
    let state = job.folder().join("coordinator");
    let mut cluster = Cluster::start(&job);
    cluster.worker_with("a", &[], FAILPOINTS);
    cluster.worker_with("b", &[], FAILPOINTS);
    cluster.wait_for_sessions();
    let id = launch(&cluster, &job);
    cluster.kill_coordinator();
    let mut before = stored(&runtime, &state);
    let (mut writes, mut deaths) = (0, 0);
    loop {
        // The same write twice: one that is lost, and one that is made and of which nobody hears.
        let (fault, made) = [("write=kill@1", 0), ("written=kill@1", 1)][deaths % 2];
        cluster.restart_armed(0, fault);
        if cluster.wait_for_death(SOON).is_none() {
            let status = cluster.json(&["status", &id]);
            if status["phase"]["phase"] == "succeeded" {
                break;
            }
            assert!(cluster.wait_for_death(LATE).is_some(), "nothing is written any more: {status}");
        }
        let after = stored(&runtime, &state);
        assert_eq!(after.0.0, before.0.0 + made, "{fault}");
        assert_eq!(after.1 == before.1, made == 0, "{fault}");
        (deaths, writes, before) = (deaths + 1, writes + made, after);
        assert!(deaths < 300, "it gets no further");
    }
    eprintln!("{deaths} deaths at {writes} writes");
    assert!(writes >= 15, "{writes} writes");
    check(&cluster, &job, &id, &recipe);
}

#[test]
#[ignore = "takes minutes: make long"]
fn of_two_over_etcd_the_one_that_leads_dies_at_its_writes_and_the_other_goes_on() {
    let runtime = Runtime::new().unwrap();
    let Some(etcd) = runtime.block_on(Etcd::start(1)) else { return };
    let recipe = recipe(60, 20);
    let job = Job::new(&recipe);
    let mut cluster = Cluster::start_shared(&job, &etcd.address("/s"), 2);
    cluster.worker_with("a", &[], FAILPOINTS);
    cluster.worker_with("b", &[], FAILPOINTS);
    let id = launch(&cluster, &job);
    // The first write that counts is that of the leader's key.
    let faults =
        ["write=kill@2", "written=kill@2", "written=kill@1", "write=kill@3", "written=kill@3", "written=kill@4", ""];
    let mut dead = 0;
    cluster.kill_coordinator_number(dead);
    for fault in faults {
        cluster.restart_armed(dead, fault);
        if fault.is_empty() {
            break;
        }
        // The one that stood by leads, and dies, but for the first time.
        match cluster.wait_for_death(Duration::from_secs(20)) {
            Some(number) => dead = number,
            None => {
                dead = 1 - dead;
                cluster.kill_coordinator_number(dead);
            }
        }
        eprintln!("coordinator {dead} died; {fault} stands by");
    }
    let mut other = 1 - dead;
    while let Some(number) = cluster.wait_for_death(Duration::from_secs(20)) {
        cluster.restart_armed(number, "");
        other = number;
    }
    eprintln!("coordinator {other} was the last to die");
    let events: Value = cluster.json(&["events", &id, "--follow"]);
    assert!(events["events"].is_array(), "{events}");
    check(&cluster, &job, &id, &recipe);
}
