//! Speaks to a coordinator, in our own types.

use super::error::CliError;
use common::{
    recipe::Recipe,
    status::{Event, JobStatus, WorkerStatus},
};
use proto::v1::{
    EventsRequest, JobRequest, ListRequest, ListWorkersRequest, ResumeRequest, StatusReply, SubmitRequest,
    jobs_client::JobsClient,
};
use serde::de::DeserializeOwned;
use std::time::Duration;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

/// How long a coordinator may take to answer the first call.
const CONNECT: Duration = Duration::from_secs(5);

/// A connection to a coordinator.
#[derive(Debug, Clone)]
pub(super) struct Client(JobsClient<Channel>);

fn read<T: DeserializeOwned>(json: &str) -> Result<T, CliError> {
    serde_json::from_str(json).map_err(|error| {
        CliError::new(1, format!("the coordinator's answer cannot be read ({error}): is it of another version?"))
    })
}

fn status(reply: tonic::Response<StatusReply>) -> Result<JobStatus, CliError> {
    read(&reply.into_inner().status)
}

impl Client {
    /// Connects.
    pub(super) async fn connect(url: &str) -> Result<Self, CliError> {
        let endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(|error| CliError::usage(format!("`{url}` is no address such as http://10.0.0.1:7070: {error}")))?;
        let channel = endpoint.connect_timeout(CONNECT).connect().await.map_err(|_| {
            CliError::contact(format!("no coordinator answers at {url}: is `llm2clip serve` running there?"))
        })?;
        Ok(Self(JobsClient::new(channel)))
    }

    pub(super) async fn submit(&mut self, job: &str, recipe: &Recipe, world_size: u32) -> Result<JobStatus, CliError> {
        let recipe = serde_json::to_string(recipe).expect("a recipe is JSON");
        status(self.0.submit(SubmitRequest { recipe, world_size, job: job.to_owned() }).await?)
    }

    pub(super) async fn list(&mut self) -> Result<Vec<JobStatus>, CliError> {
        let reply = self.0.list(ListRequest {}).await?.into_inner();
        reply.jobs.iter().map(|job| read(job)).collect()
    }

    pub(super) async fn status(&mut self, job: &str) -> Result<JobStatus, CliError> {
        status(self.0.status(JobRequest { job: job.to_owned() }).await?)
    }

    pub(super) async fn stop(&mut self, job: &str) -> Result<JobStatus, CliError> {
        status(self.0.stop(JobRequest { job: job.to_owned() }).await?)
    }

    pub(super) async fn resume(
        &mut self,
        job: &str,
        step: Option<u64>,
        world_size: Option<u32>,
        weights: &[(String, u32)],
    ) -> Result<JobStatus, CliError> {
        let (job, weights) = (job.to_owned(), weights.iter().cloned().collect());
        status(self.0.resume(ResumeRequest { job, step, world_size, weights }).await?)
    }

    pub(super) async fn workers(&mut self) -> Result<Vec<WorkerStatus>, CliError> {
        let reply = self.0.list_workers(ListWorkersRequest {}).await?.into_inner();
        reply.workers.iter().map(|worker| read(worker)).collect()
    }

    /// The status now and after each change, until the job has ended.
    pub(super) async fn watch(&mut self, job: &str) -> Result<Watch, CliError> {
        Ok(Watch(self.0.watch(JobRequest { job: job.to_owned() }).await?.into_inner()))
    }

    /// Events after a number; with `follow`, new ones until the job has ended.
    pub(super) async fn events(&mut self, job: &str, after: u64, follow: bool) -> Result<Events, CliError> {
        let request = EventsRequest { job: job.to_owned(), after, follow };
        Ok(Events(self.0.events(request).await?.into_inner()))
    }
}

/// A job's status as it changes.
pub(super) struct Watch(Streaming<StatusReply>);

impl Watch {
    pub(super) async fn next(&mut self) -> Result<Option<JobStatus>, CliError> {
        self.0.message().await?.map(|reply| read(&reply.status)).transpose()
    }
}

/// A job's events.
pub(super) struct Events(Streaming<proto::v1::EventReply>);

impl Events {
    pub(super) async fn next(&mut self) -> Result<Option<Event>, CliError> {
        self.0.message().await?.map(|reply| read(&reply.event)).transpose()
    }
}
