//! Several coordinators over a real etcd: real processes that are killed and paused, and what becomes of a job meanwhile.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "what the store's own tests need")]
#[path = "../src/store/etcd/tests/server.rs"]
mod etcd;
#[path = "support/follower.rs"]
mod follower;
#[path = "support/server.rs"]
mod server;
#[allow(dead_code, unused_imports, reason = "what the other tests need")]
mod support;

use common::status::{JobStatus, Phase};
use coordinator::{
    election::{Elector, Identity, KEY, Timing},
    job::Submission,
    runtime::{Runtime, RuntimeConfig, RuntimeError},
    store::{EtcdAddress, EtcdStore, Fence, MemoryStore, Put, Revision, Store, StoreError},
};
use etcd::Etcd;
use follower::Follower;
use proto::{
    leader::{self, Named},
    v1::{ListRequest, SubmitRequest, jobs_client::JobsClient},
};
use rustix::process::Signal;
use server::{LEASE, Servers};
use std::time::{Duration, Instant};
use support::{Script, recipe};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// How much longer than a lease it may take until another coordinator leads.
const SLACK: Duration = Duration::from_secs(2);

fn store(etcd: &Etcd, prefix: &str) -> EtcdStore {
    EtcdStore::new(&EtcdAddress::parse(&etcd.address(prefix)).unwrap()).unwrap()
}

/// A submission that is made by hand.
fn submission(folder: &std::path::Path, job: &str) -> SubmitRequest {
    let recipe = serde_json::to_string(&recipe(&folder.join(job))).unwrap();
    SubmitRequest { recipe, world_size: 2, job: job.into() }
}

/// Waits until a standby names the leader.
async fn names(standby: &mut JobsClient<Channel>, url: &str) {
    let began = Instant::now();
    loop {
        let named = leader::named(&standby.list(ListRequest {}).await.unwrap_err());
        if named == Named::At(url.to_owned()) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{named:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_from_a_killed_leader_and_the_job_goes_on() {
    let Some(etcd) = Etcd::start(1).await else { return };
    let mut servers = Servers::start(&etcd.address("/a"), 2).await;
    let (leader, _) = servers.leader(Duration::from_secs(20)).await;
    let standby = 1 - leader;
    // Through the standby's address, by the real command line.
    let job = servers.launch(standby).await;
    let worker = Follower::start(&servers.urls(&[standby, leader]), Script::Wait);
    let running = |status: &JobStatus| status.stage == 1 && status.phase == Phase::Running;
    let before = servers.wait_for(leader, &job, running).await;
    let first = worker.term();
    let follow = ["events", &job, "--follow", "-o", "json"];
    let events = servers.spawn(&servers.urls(&[leader, standby]), &follow);

    servers.signal(leader, Signal::KILL);
    let (next, took) = servers.leader(LEASE + SLACK).await;
    assert_eq!(next, standby);
    eprintln!("another coordinator led {:.2} s after the leader was killed (its lease: {LEASE:?})", took.as_secs_f64());
    servers.until("the worker is back", || worker.term() > first).await;
    let after = servers.wait_for(standby, &job, running).await;
    assert_eq!((after.generation, &after.failures), (before.generation, &Vec::new()), "no trainer was restarted");

    let both = servers.urls(&[leader, standby]);
    let stopped = servers.run(&both, &["stop", &job]).await;
    assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
    let status = servers.wait_for(standby, &job, |status| status.phase.exit_code().is_some()).await;
    assert_eq!((status.phase, status.stages[1].checkpoint), (Phase::Stopped, Some(common::ids::Step(6))));
    let events = events.wait_with_output().await.unwrap();
    let document: serde_json::Value = serde_json::from_slice(&events.stdout).unwrap();
    let told: Vec<u64> =
        document["events"].as_array().unwrap().iter().map(|event| event["sequence"].as_u64().unwrap()).collect();
    assert!(events.status.success() && !told.is_empty());
    assert!(told.windows(2).all(|pair| pair[0] < pair[1]), "the stream went on where it was: {told:?}");
    assert_eq!(document["events"].as_array().unwrap().last().unwrap()["kind"], "stopped", "{document}");
    assert!(worker.seen().iter().skip(1).all(|seen| !seen.orders.contains(&"start")), "{:?}", worker.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_paused_is_refused_everywhere_and_steps_down() {
    let Some(etcd) = Etcd::start(1).await else { return };
    let mut servers = Servers::start(&etcd.address("/b"), 2).await;
    let (old, _) = servers.leader(Duration::from_secs(20)).await;
    let new = 1 - old;
    let job = servers.launch(old).await;
    let worker = Follower::start(&servers.urls(&[old, new]), Script::Wait);
    let running = |status: &JobStatus| status.stage == 1 && status.phase == Phase::Running;
    let before = servers.wait_for(old, &job, running).await;
    let first = worker.term().unwrap();

    let mut to_old = JobsClient::connect(servers.url(old).to_owned()).await.unwrap();
    servers.pause(old).await;
    let paused = Instant::now();
    // On its way to the old leader while that is paused, and not read before it goes on.
    let late = submission(servers.folder(), "late-1");
    let mut asking = to_old.clone();
    let late = tokio::spawn(async move { asking.submit(late).await });
    let (leads, took) = servers.leader(LEASE + SLACK).await;
    assert_eq!(leads, new);
    eprintln!("another coordinator led {:.2} s after the leader was paused (its lease: {LEASE:?})", took.as_secs_f64());
    servers.until("the worker is back", || worker.term() > Some(first)).await;
    let second = worker.term().unwrap();
    let status = servers.wait_for(new, &job, running).await;
    assert_eq!((status.generation, &status.failures), (before.generation, &Vec::new()));
    let records = store(&etcd, "/b").list("/llm2clip/v1/jobs/").await.unwrap();
    let asked = Instant::now();
    let seen = servers.run(&servers.urls(&[old, new]), &["status", &job]).await;
    eprintln!("the command line left the paused leader after {:.2} s", asked.elapsed().as_secs_f64());
    assert!(seen.status.success(), "{}", String::from_utf8_lossy(&seen.stderr));

    tokio::time::sleep((2 * LEASE).saturating_sub(paused.elapsed())).await;
    servers.signal(old, Signal::CONT);
    let refused = late.await.unwrap().unwrap_err();
    assert_ne!(leader::named(&refused), Named::Unsaid, "{refused}");
    let refused = to_old.list(ListRequest {}).await.unwrap_err();
    assert_ne!(leader::named(&refused), Named::Unsaid, "{refused}");
    servers.until("it steps down", || servers.log(old).contains("steps down")).await;
    names(&mut to_old, servers.url(new)).await;
    // Its word counts nowhere: the records are as the new leader left them, the key is the new leader's, and a write under the
    // old term is refused by the store itself.
    let etcd_store = store(&etcd, "/b");
    let now = etcd_store.list("/llm2clip/v1/jobs/").await.unwrap();
    assert_eq!(now.entries.iter().map(|entry| &entry.key).collect::<Vec<_>>(), [&format!("/llm2clip/v1/jobs/{job}")]);
    assert_eq!(now.entries[0].revision, records.entries[0].revision);
    assert_eq!(etcd_store.get(KEY).await.unwrap().unwrap().revision, Revision(second));
    let fence = Fence { key: KEY.into(), revision: Revision(first) };
    let put = Put { key: "/llm2clip/v1/jobs/x".into(), value: vec![], expected: None, lease: None };
    assert!(matches!(etcd_store.fenced(fence).put_if(put).await, Err(StoreError::Fenced { .. })));
    assert_eq!(worker.term(), Some(second), "the worker stayed with the new leader");

    // And it may lead again, in a later term: at once, as the other one ends in good order and gives its lease back.
    let events = servers.spawn(&servers.urls(&[new, old]), &["events", &job, "--follow", "-o", "json"]);
    servers.signal(new, Signal::TERM);
    let ending = Instant::now();
    while servers.who_leads().await != Some(old) {
        assert!(ending.elapsed() < SLACK, "nobody leads:\n{}", servers.log(old));
    }
    eprintln!("another coordinator led {:.2} s after the leader was told to end", ending.elapsed().as_secs_f64());
    servers.until("the worker is back", || worker.term() > Some(second)).await;
    let status = servers.wait_for(old, &job, running).await;
    assert_eq!((status.generation, &status.failures), (before.generation, &Vec::new()));
    assert!(servers.run(servers.url(old), &["stop", &job]).await.status.success());
    let events = events.wait_with_output().await.unwrap();
    let document: serde_json::Value = serde_json::from_slice(&events.stdout).unwrap();
    assert_eq!(document["events"].as_array().unwrap().last().unwrap()["kind"], "stopped", "{document}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_quorum_ends_no_trainer_and_a_leader_is_back_when_it_is() {
    let Some(mut etcd) = Etcd::start(3).await else { return };
    let servers = Servers::start(&etcd.address(""), 2).await;
    let (leader, _) = servers.leader(Duration::from_secs(20)).await;
    let job = servers.launch(leader).await;
    let worker = Follower::start(&servers.urls(&[leader, 1 - leader]), Script::Wait);
    let running = |status: &JobStatus| status.stage == 1 && status.phase == Phase::Running;
    let before = servers.wait_for(leader, &job, running).await;
    let first = worker.term();
    etcd.kill(0);
    etcd.kill(1);
    servers.until("the leader steps down", || servers.log(leader).contains("steps down")).await;
    assert!(servers.who_leads().await.is_none(), "nobody leads without a store");
    etcd.restart(0);
    etcd.restart(1);
    etcd.ready().await;
    let (next, took) = servers.leader(LEASE + Duration::from_secs(8)).await;
    eprintln!("a coordinator led {:.2} s after the quorum was back", took.as_secs_f64());
    servers.until("the worker is back", || worker.term() > first).await;
    let after = servers.wait_for(next, &job, running).await;
    assert_eq!((after.generation, &after.failures), (before.generation, &Vec::new()));
    assert!(worker.seen().iter().all(|seen| !seen.orders.contains(&"end")), "{:?}", worker.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_end_hands_over_before_the_lease_lapses() {
    let store = MemoryStore::default();
    let identity = |url: &str| {
        let timing = Timing { ttl: Duration::from_secs(600) };
        Identity { url: url.into(), timing, runtime: RuntimeConfig::default() }
    };
    let (first, seats) = Elector::new(store.clone(), identity("http://a:1"));
    let (second, others) = Elector::new(store.clone(), identity("http://b:1"));
    let (token, other) = (CancellationToken::new(), CancellationToken::new());
    let first = tokio::spawn(first.run(token.clone()));
    let until = async |check: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !check() {
            assert!(began.elapsed() < Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    until(&|| seats.office().is_ok()).await;
    let second = tokio::spawn(second.run(other.clone()));
    until(&|| others.office().err() == Some(Some("http://a:1".into()))).await;
    let term = seats.office().unwrap().term.unwrap();
    token.cancel();
    first.await.unwrap();
    assert!(seats.office().is_err());
    until(&|| others.office().is_ok()).await;
    assert!(others.office().unwrap().term.unwrap() > term);
    other.cancel();
    second.await.unwrap();
    assert_eq!(store.get(KEY).await.unwrap(), None, "the lease was given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_of_a_deposed_leader_ends_its_loop_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = MemoryStore::default();
    let key = |value: u8| Put { key: KEY.into(), value: vec![value], expected: None, lease: None };
    let term = store.put_if(key(1)).await.unwrap();
    let fenced = store.fenced(Fence { key: KEY.into(), revision: term });
    let (handle, runtime) = Runtime::open(fenced, RuntimeConfig::default()).await.unwrap();
    let running = tokio::spawn(runtime.run(CancellationToken::new()));
    let submit = |job: &str| Submission {
        job: job.parse().unwrap(),
        recipe: recipe(&folder.path().join(job)),
        world_size: common::ids::WorldSize(1),
    };
    handle.submit(submit("first-1")).await.unwrap();
    store.delete_if(KEY, term).await.unwrap();
    store.put_if(key(2)).await.unwrap();
    assert!(matches!(handle.submit(submit("second-1")).await, Err(RuntimeError::Closed)));
    let ended = running.await.unwrap();
    assert!(matches!(ended, Err(RuntimeError::Store(StoreError::Fenced { .. }))), "{ended:?}");
    let jobs = store.list("/llm2clip/v1/jobs/").await.unwrap().entries;
    assert_eq!(jobs.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["/llm2clip/v1/jobs/first-1"]);
}
