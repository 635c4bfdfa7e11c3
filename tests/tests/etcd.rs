//! An etcd of three members under coordinators with a real training: what it loses, no trainer notices.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(dead_code, reason = "what the store's own tests need")]
#[path = "../../coordinator/src/store/etcd/tests/server.rs"]
mod server;

use server::Etcd;
use std::{
    process::Stdio,
    time::{Duration, Instant},
};
use tests::{Cluster, Job, Recipe, until};
use tokio::runtime::Runtime;

/// No checkpoint before the last step, and nobody may be started again.
fn recipe(steps: u64) -> Recipe {
    Recipe { steps, every_steps: 10_000, ..Recipe::default() }
}

/// A training of two over two coordinators, whose steps take at least half a second.
struct Training<'a> {
    cluster: Cluster<'a>,
    job: &'a Job,
    id: String,
    pids: Vec<i32>,
}

impl<'a> Training<'a> {
    fn start(job: &'a Job, etcd: &Etcd) -> Self {
        let mut cluster = Cluster::start_shared(job, &etcd.address("/e"), 2);
        ["a", "b"].iter().for_each(|worker| cluster.worker_with(worker, &[], "clip.step=slow:500@1"));
        let launched = cluster.json(&["launch", job.recipe().to_str().unwrap(), "--ranks", "2"]);
        let id = launched["job"].as_str().unwrap().to_owned();
        job.wait_for_step(10);
        let pids = cluster.trainers(&id);
        assert_eq!(pids.len(), 2);
        Self { cluster, job, id, pids }
    }

    fn reached(&self) -> u64 {
        self.job.steps().last().unwrap().step
    }

    /// Goes on for so long, and does not stand still meanwhile.
    fn goes_on(&self, during: Duration) {
        let began = Instant::now();
        while began.elapsed() < during {
            self.job.wait_for_step(self.reached() + 1);
        }
    }

    /// How long it takes until a coordinator leads and answers.
    fn answers(&self) -> Duration {
        let began = Instant::now();
        let asked = || self.cluster.llm2clip(&["status", &self.id]);
        assert!(until(Duration::from_secs(60), || asked().status.success()), "nobody answers");
        began.elapsed()
    }

    /// It ends well, with the trainers that it began with, and every loss is an undisturbed run's in every bit.
    fn finish(self, recipe: &Recipe) {
        assert_eq!(self.cluster.trainers(&self.id), self.pids, "the same processes");
        let events = self.cluster.llm2clip(&["events", &self.id, "--follow"]);
        let status = self.cluster.json(&["status", &self.id]);
        let said = String::from_utf8_lossy(&events.stdout);
        assert_eq!(status["phase"]["phase"], "succeeded", "{status}\n{said}");
        assert_eq!(status["failures"], serde_json::json!([]), "nothing was lost");
        assert_eq!(self.job.trainers_started(), 2, "and nothing started again");
        self.job.check_undisturbed(recipe, 2, 0.0, 0);
    }
}

/// The newest change of an etcd.
fn revision(etcd: &Etcd, member: usize) -> String {
    let said = etcd.post(member, "/v3/maintenance/status", "{}");
    said.split("\"revision\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a revision").to_owned()
}

#[test]
fn its_leader_is_killed_its_history_compacted_meanwhile_and_a_member_stands_still() {
    let runtime = Runtime::new().unwrap();
    let Some(mut etcd) = runtime.block_on(Etcd::start(3)) else { return };
    let recipe = recipe(80);
    let job = Job::new(&recipe);
    let training = Training::start(&job, &etcd);
    let leader = runtime.block_on(etcd.leader());
    etcd.kill(leader);
    eprintln!("answers {:.1} s after etcd's leader was killed", training.answers().as_secs_f64());
    // What watches of the killed member had not told by then is no longer kept.
    let other = runtime.block_on(etcd.leader());
    let now = revision(&etcd, other);
    let said = etcd.post(other, "/v3/kv/compaction", &format!("{{\"revision\":\"{now}\",\"physical\":true}}"));
    assert!(said.contains("200 OK"), "{said}");
    training.goes_on(Duration::from_secs(4));
    etcd.restart(leader);
    runtime.block_on(etcd.ready());
    let leader = runtime.block_on(etcd.leader());
    etcd.stop(leader);
    eprintln!("answers {:.1} s after etcd's leader was stopped", training.answers().as_secs_f64());
    training.goes_on(Duration::from_secs(6));
    etcd.resume(leader);
    training.goes_on(Duration::from_secs(2));
    training.finish(&recipe);
}

/// Two of three members are gone for so long, and a user launches a job meanwhile.
fn quorum_is_lost(during: Duration) {
    let runtime = Runtime::new().unwrap();
    let Some(mut etcd) = runtime.block_on(Etcd::start(3)) else { return };
    // Half a second each, at least.
    let recipe = recipe(40 + 2 * during.as_secs());
    let job = Job::new(&recipe);
    let training = Training::start(&job, &etcd);
    etcd.kill(0);
    etcd.kill(1);
    let before = training.reached();
    training.goes_on(Duration::from_secs(4));
    let second = Job::new(&Recipe::default());
    let mut launch =
        training.cluster.command(&["launch", second.recipe().to_str().unwrap(), "--ranks", "2", "-o", "json"]);
    let launch = launch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    training.goes_on(during.saturating_sub(Duration::from_secs(4)));
    eprintln!("{} steps without a quorum", training.reached() - before);
    etcd.restart(0);
    etcd.restart(1);
    runtime.block_on(etcd.ready());
    let took = training.answers();
    eprintln!("answers {:.1} s after the quorum was back", took.as_secs_f64());
    assert!(took <= Duration::from_secs(10), "it took {took:?}");
    let launched = launch.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&launched.stderr).into_owned();
    eprintln!("the launch: {:?}, {said}", launched.status.code());
    assert!(said.contains("no coordinator leads yet"), "{said}");
    if launched.status.success() {
        let document: serde_json::Value = serde_json::from_slice(&launched.stdout).unwrap();
        let other = document["job"].as_str().unwrap();
        let why = training.cluster.llm2clip(&["why", other]);
        let why = String::from_utf8_lossy(&why.stdout).into_owned();
        eprintln!("{why}");
        assert!(why.contains("waits"), "{why}");
        assert!(training.cluster.llm2clip(&["stop", other]).status.success());
    }
    training.finish(&recipe);
}

#[test]
#[ignore = "takes minutes: make long"]
fn its_quorum_is_lost_for_twenty_seconds() {
    quorum_is_lost(Duration::from_secs(20));
}

#[test]
#[ignore = "takes minutes: make long"]
fn its_quorum_is_lost_for_two_minutes() {
    quorum_is_lost(Duration::from_secs(120));
}
