//! Jobs over real gRPC and a real store; only the trainers pretend.
#![allow(clippy::unwrap_used)]

mod support;

use common::{
    ids::{Rank, Step},
    status::{FailureCause, Phase, WaitReason},
};
use proto::v1::{JobRequest, ListRequest, ListWorkersRequest, ResumeRequest};
use support::{Cluster, FakeWorker, Script, recipe};
use tonic::Code;

fn job() -> JobRequest {
    JobRequest { job: "demo-1".into() }
}

#[tokio::test]
async fn two_stages_on_two_trainers_succeed() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(folder.path()).await;
    let recipe = recipe(&folder.path().join("output"));
    let status = cluster.submit(&recipe, 2).await.unwrap();
    let reason = WaitReason::NotEnoughTrainers { needed: 2, free: 0 };
    assert_eq!(status.phase, Phase::Waiting { reason });
    let _worker = FakeWorker::start(&cluster.url, Script::Train).await;

    let status = cluster.follow(|status| status.phase.exit_code().is_some()).await;
    assert_eq!(status.phase, Phase::Succeeded, "{:?}", status.failures);
    assert_eq!((status.stage, status.generation.0, status.ranks.len()), (2, 2, 2));
    assert_eq!(status.stages[0].summary, Some(serde_json::json!({"vectors": 9})));
    assert_eq!(status.stages[1].checkpoint, Some(Step(10)));

    let events = cluster.events().await;
    let kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
    let expected = [
        "submitted",
        "generation",
        "running",
        "stage-done",
        "generation",
        "running",
        "checkpoint",
        "stage-done",
        "succeeded",
    ];
    assert_eq!(kinds, expected);
    let workers = cluster.jobs.list_workers(ListWorkersRequest {}).await.unwrap().into_inner().workers;
    assert!(workers.len() == 1 && workers[0].contains("\"busy\":[]"), "{workers:?}");

    assert_eq!(cluster.submit(&recipe, 2).await.unwrap().phase, Phase::Succeeded, "a repeated submit is the same job");
    let other = common::recipe::Recipe { seed: 8, ..recipe };
    assert_eq!(cluster.submit(&other, 2).await.unwrap_err().code(), Code::AlreadyExists);
    let resume = ResumeRequest { job: "demo-1".into(), ..ResumeRequest::default() };
    assert_eq!(cluster.jobs.resume(resume).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(cluster.jobs.stop(JobRequest { job: "nobody".into() }).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(cluster.jobs.stop(JobRequest { job: "/".into() }).await.unwrap_err().code(), Code::InvalidArgument);
    assert!(cluster.end().await);
}

#[tokio::test]
async fn a_killed_trainer_fails_the_job_and_the_record_outlives_the_coordinator() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(folder.path()).await;
    let worker = FakeWorker::start(&cluster.url, Script::Die).await;
    cluster.submit(&recipe(&folder.path().join("output")), 2).await.unwrap();
    let Phase::Failed { exit_code: 1, message } = cluster.end_of_job().await else { panic!("it did not fail with 1") };
    assert!(message.contains("rank 1") && message.contains("signal 9"), "{message}");
    drop(worker);
    assert!(cluster.end().await);

    let mut cluster = Cluster::start(folder.path()).await;
    let jobs = cluster.jobs.list(ListRequest {}).await.unwrap().into_inner().jobs;
    assert_eq!(jobs.len(), 1);
    let status = cluster.follow(|_| true).await;
    let [failure] = status.failures.as_slice() else { panic!("{:?}", status.failures) };
    assert_eq!((failure.rank, &failure.cause), (Some(Rank(1)), &FailureCause::Signal { signal: 9 }));
    assert_eq!((failure.pid, failure.last_lines.as_slice()), (Some(101), ["the last line".to_owned()].as_slice()));

    let resume = ResumeRequest { job: "demo-1".into(), world_size: Some(1), ..ResumeRequest::default() };
    cluster.jobs.resume(resume).await.unwrap();
    let _worker = FakeWorker::start(&cluster.url, Script::Train).await;
    let status = cluster.follow(|status| status.phase.exit_code().is_some()).await;
    assert_eq!((&status.phase, status.generation.0, status.ranks.len()), (&Phase::Succeeded, 3, 1));
    assert!(cluster.end().await);
}

#[tokio::test]
async fn stop_waits_for_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(folder.path()).await;
    let _worker = FakeWorker::start(&cluster.url, Script::Wait).await;
    cluster.submit(&recipe(&folder.path().join("output")), 2).await.unwrap();
    cluster.follow(|status| status.stage == 1 && status.phase == Phase::Running).await;
    cluster.jobs.stop(job()).await.unwrap();
    let status = cluster.follow(|status| status.phase.exit_code().is_some()).await;
    assert_eq!((status.phase, status.stages[1].checkpoint), (Phase::Stopped, Some(Step(6))));
    assert!(status.failures.is_empty(), "{:?}", status.failures);
    assert!(cluster.end().await);
}

#[tokio::test]
async fn a_vanished_worker_is_lost_when_its_lease_lapses() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(folder.path()).await;
    let worker = FakeWorker::start(&cluster.url, Script::Wait).await;
    // While another one is heard of, it is not the coordinator that is out of reach.
    let _other = FakeWorker::start_as(&cluster.url, "v", Script::Wait).await;
    cluster.submit(&recipe(&folder.path().join("output")), 4).await.unwrap();
    cluster.follow(|status| status.stage == 1 && status.phase == Phase::Running).await;
    worker.vanish();
    let status = cluster.follow(|status| status.phase.exit_code().is_some()).await;
    assert!(matches!(status.phase, Phase::Failed { exit_code: 1, .. }), "{:?}", status.phase);
    assert!(status.failures.iter().all(|failure| failure.cause == FailureCause::WorkerLost));
    assert!(cluster.end().await);
}
