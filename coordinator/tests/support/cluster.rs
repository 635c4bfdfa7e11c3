//! A coordinator on loopback, with its store in a folder.

use common::{
    daemon::shutdown::Shutdown,
    ids::{Generation, Rank},
    manifest::{DataCursor, Part, Share, paths},
    recipe::Recipe,
    sampler::OrderSpec,
    status::{Event, JobStatus, Phase},
};
use coordinator::{
    api,
    election::Seats,
    runtime::{Runtime, RuntimeConfig},
    store::RedbStore,
};
use proto::v1::{EventsRequest, JobRequest, SubmitRequest, jobs_client::JobsClient};
use std::{path::Path, time::Duration};
use tokio::net::TcpListener;
use tonic::transport::Channel;

/// The longest a test waits for one thing.
const DEADLINE: Duration = Duration::from_secs(30);

/// A coordinator and a client of it.
pub struct Cluster {
    shutdown: Shutdown,
    pub url: String,
    pub jobs: JobsClient<Channel>,
}

impl Cluster {
    /// Starts a coordinator over the store of a folder.
    pub async fn start(state: &Path) -> Self {
        let shutdown = Shutdown::new();
        let store = RedbStore::open(state).unwrap();
        let config = RuntimeConfig {
            lease: Duration::from_secs(2),
            return_within: Duration::from_secs(2),
            ..RuntimeConfig::default()
        };
        let (handle, runtime) = Runtime::open(store, config).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let token = shutdown.token();
        shutdown.spawn(async move { runtime.run(token).await.unwrap() });
        let server = api::serve(listener, Seats::always(handle), shutdown.clone());
        shutdown.spawn(async move { server.await.unwrap() });
        let jobs = JobsClient::connect(url.clone()).await.unwrap();
        Self { shutdown, url, jobs }
    }

    /// Ends the coordinator; true when everything ended in time.
    pub async fn end(self) -> bool {
        drop(self.jobs);
        self.shutdown.finish(DEADLINE).await
    }

    pub async fn submit(&mut self, recipe: &Recipe, world_size: u32) -> Result<JobStatus, tonic::Status> {
        let recipe = serde_json::to_string(recipe).unwrap();
        let request = SubmitRequest { recipe, world_size, job: "demo-1".into() };
        let reply = self.jobs.submit(request).await?.into_inner();
        Ok(serde_json::from_str(&reply.status).unwrap())
    }

    /// Follows the job until `until`; returns the status then.
    pub async fn follow(&mut self, until: impl Fn(&JobStatus) -> bool) -> JobStatus {
        let follow = async {
            let mut stream = self.jobs.watch(JobRequest { job: "demo-1".into() }).await.unwrap().into_inner();
            let mut seen = Vec::new();
            while let Some(reply) = stream.message().await.unwrap() {
                let status: JobStatus = serde_json::from_str(&reply.status).unwrap();
                if until(&status) {
                    return status;
                }
                seen.push(status.phase);
            }
            panic!("the stream ended before: {seen:?}");
        };
        tokio::time::timeout(DEADLINE, follow).await.unwrap()
    }

    /// Follows the job to its end.
    pub async fn end_of_job(&mut self) -> Phase {
        self.follow(|status| status.phase.exit_code().is_some()).await.phase
    }

    /// The kinds of all events; the stream must end by itself, as the job has.
    pub async fn events(&mut self) -> Vec<Event> {
        let request = EventsRequest { job: "demo-1".into(), after: 0, follow: true };
        let mut stream = self.jobs.events(request).await.unwrap().into_inner();
        let mut events = Vec::new();
        while let Some(reply) = tokio::time::timeout(DEADLINE, stream.message()).await.unwrap().unwrap() {
            events.push(serde_json::from_str(&reply.event).unwrap());
        }
        events
    }
}

/// Stages `embed` and `clip`.
pub fn recipe(output: &Path) -> Recipe {
    let recipe = serde_json::json!({
        "name": "demo", "seed": 7, "output": output, "data": {},
        "model": {"text": null, "vision": null, "adapter": null},
        "stages": [
            {"kind": "embed", "data": ["d"], "batch_tokens": 64},
            {"kind": "clip", "data": ["d"], "global_batch": 8, "chunk": 4, "length": {"steps": 10},
             "precision": "fp32", "augment": {"scale": [0.9, 1.0], "ratio": [0.75, 1.33]},
             "optimizer": {"learning_rate": 1e-3, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.05,
                           "clip_norm": 1.0, "layer_decay": 1.0},
             "schedule": {"warmup_steps": 2}, "checkpoint": {"every_steps": 4, "keep": 2}, "logit_scale_init": 2.6592}
        ],
        "faults": {"max_failures": 0, "max_no_progress": 3}
    });
    serde_json::from_value(recipe).unwrap()
}

/// What a rank says it wrote.
pub fn share(rank: Rank) -> Share {
    let part = Part {
        rank,
        file: paths::part_file(rank, Generation(1)),
        bytes: 8,
        blake3: "00".repeat(32),
        tensors: Default::default(),
    };
    Share { part, data: DataCursor::new(&OrderSpec::plain(7, &[], 8), 80, |_| String::new()) }
}
