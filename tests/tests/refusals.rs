//! Workers that are not taken in: a second one under an id, an old incarnation, another version of the protocol. Each side says
//! why, and a user finds it with `llm2clip workers`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use common::status::Inventory;
use proto::v1::{
    FromWorker, Register, ToWorker, from_worker::Message as Said, to_worker::Message as Told,
    workers_client::WorkersClient,
};
use serde_json::Value;
use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};
use tests::{Cluster, Job, Recipe};
use tokio_stream::wrappers::ReceiverStream;

/// What `workers` says of who was refused, newest first.
fn refused(cluster: &Cluster<'_>) -> Vec<Value> {
    cluster.json(&["workers"])["refused"].as_array().unwrap().clone()
}

#[test]
fn of_two_daemons_under_one_id_the_second_is_refused_until_the_first_is_gone() {
    let job = Job::new(&Recipe::default());
    let mut cluster = Cluster::start(&job);
    cluster.worker("w");
    cluster.wait_for_session("w");
    let mut second = job.around(Command::new(Job::binary("llm2clip-worker")));
    second.args(["--coordinator", &cluster.urls(), "--id", "w", "--trainers", "3", "--state"]);
    second.arg(job.folder().join("second"));
    let mut second = second.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(second.stderr.take().unwrap()).lines().map_while(Result::ok);
    let said = log.find(|line| line.contains("refused")).unwrap();
    assert!(said.contains("a living worker on") && said.contains("Give each worker an id of its own"), "{said}");

    let workers = cluster.json(&["workers"]);
    let there = &workers["workers"][0];
    assert_eq!((&there["worker"], &there["connected"]), (&"w".into(), &true.into()));
    assert_eq!(there["inventory"]["trainers"], 1, "it is the first one still");
    let event = &workers["refused"][0];
    assert_eq!((&event["worker"], &event["refusal"]["reason"]), (&"w".into(), &"duplicate".into()));
    let message = event["message"].as_str().unwrap();
    assert!(said.contains(message), "both sides say the same: {said} / {message}");
    let shown = String::from_utf8(cluster.llm2clip(&["workers"]).stdout).unwrap();
    assert!(shown.contains(message), "{shown}");

    cluster.lose_machine("w");
    assert!(log.any(|line| line.contains("the session is open")), "it takes the place of one that is gone");
    assert_eq!(cluster.json(&["workers"])["workers"][0]["inventory"]["trainers"], 3);
    second.kill().unwrap();
    second.wait().unwrap();
    cluster.kill_coordinator();
    cluster.restart_coordinator();
    assert_eq!(refused(&cluster)[0]["message"], message, "it outlives the coordinator");
}

/// A first message of a worker, as the wire has it.
fn register(worker: &str) -> Register {
    let inventory = Inventory {
        host: "box".into(),
        trainers: 1,
        gpus: Vec::new(),
        cores: 1,
        memory_bytes: 1 << 30,
        version: "9.9".into(),
    };
    let (lowest_protocol, protocol) = proto::version::SPOKEN;
    Register {
        worker: worker.to_owned(),
        inventory: serde_json::to_string(&inventory).unwrap(),
        trainers: Vec::new(),
        term: None,
        lowest_protocol,
        protocol,
        instance: "folder-1".into(),
        incarnation: 10,
    }
}

/// A session, and the first answer.
struct Session {
    _say: tokio::sync::mpsc::Sender<FromWorker>,
    told: tonic::Streaming<ToWorker>,
}

async fn open(url: &str, register: Register) -> Result<Session, tonic::Status> {
    let (say, messages) = tokio::sync::mpsc::channel(4);
    say.send(FromWorker { message: Some(Said::Register(register)) }).await.unwrap();
    let mut client = WorkersClient::connect(url.to_owned()).await.unwrap();
    let mut told = client.session(ReceiverStream::new(messages)).await?.into_inner();
    let first = told.message().await?.unwrap();
    let Some(Told::Registered(registered)) = first.message else { panic!("{first:?}") };
    assert_eq!(registered.protocol, proto::version::SPOKEN.1);
    Ok(Session { _say: say, told })
}

async fn check_refused(url: &str, register: Register, expected: &str) {
    let status = open(url, register).await.err().expect("it is refused");
    assert_eq!(status.code(), tonic::Code::PermissionDenied);
    assert!(status.message().contains(expected), "{}", status.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_incarnation_and_another_version_are_refused_and_told_of() {
    let job = Job::new(&Recipe::default());
    let cluster = Cluster::start(&job);
    let url = cluster.urls();
    let mut first = open(&url, register("w")).await.unwrap();
    // The next daemon over the same folder takes the session over.
    let _later = open(&url, Register { incarnation: 11, ..register("w") }).await.unwrap();
    let ended = first.told.message().await.unwrap_err();
    assert!(ended.message().contains("has another session"), "{}", ended.message());
    check_refused(&url, register("w"), "a daemon of the same state folder that began later").await;
    check_refused(&url, Register { instance: "folder-2".into(), ..register("w") }, "a living worker on box").await;
    // Of another version nothing is read but who it is.
    let newer = Register { lowest_protocol: 7, protocol: 8, ..register("v") };
    check_refused(
        &url,
        newer,
        "it speaks versions 7 to 8 of the protocol, the coordinator version 1. Update the coord",
    )
    .await;
    let older = Register { lowest_protocol: 0, protocol: 0, inventory: "?".into(), ..register("u") };
    check_refused(&url, older.clone(), "Update llm2clip-worker there").await;
    check_refused(&url, older, "on a machine of unknown name").await;

    let found = refused(&cluster);
    let brief = |event: &Value| {
        let (worker, reason) = (event["worker"].as_str().unwrap(), event["refusal"]["reason"].as_str().unwrap());
        format!("{worker} {reason} {}", event["count"])
    };
    let found: Vec<String> = found.iter().map(brief).collect();
    assert_eq!(found, ["u protocol 2", "v protocol 1", "w duplicate 1", "w old_incarnation 1"]);
    let workers = cluster.json(&["workers"]);
    assert_eq!(workers["workers"].as_array().unwrap().len(), 1, "who is refused is no worker");
}
