//! What the command line asks.

use super::{
    errors::{self, invalid},
    streams,
};
use crate::{
    election::Seats,
    job::{Resume, Submission},
    runtime::Handle,
};
use common::{
    daemon::shutdown::Shutdown,
    ids::{JobId, Step, WorldSize},
    recipe::Recipe,
    status::WorkerStatus,
};
use proto::v1::{
    DrainRequest, EventReply, EventsRequest, JobRequest, ListReply, ListRequest, ListWorkersReply, ListWorkersRequest,
    ResumeRequest, StatusReply, SubmitRequest, jobs_server::Jobs,
};
use serde::Serialize;
use std::future::Future;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// The service `Jobs`.
pub(super) struct JobsService {
    seats: Seats,
    shutdown: Shutdown,
}

impl JobsService {
    pub(super) fn new(seats: Seats, shutdown: Shutdown) -> Self {
        Self { seats, shutdown }
    }

    /// The loop, if it is ours to run.
    fn handle(&self) -> Result<Handle, Status> {
        Ok(errors::office(&self.seats)?.handle)
    }

    /// Runs a stream's task until it, or the server, ends.
    fn stream(&self, task: impl Future<Output = ()> + Send + 'static) {
        let token = self.shutdown.token();
        self.shutdown.spawn(async move { token.run_until_cancelled(task).await });
    }
}

fn job_id(job: &str) -> Result<JobId, Status> {
    job.parse().map_err(|error| invalid("job", error))
}

fn json<T: Serialize>(value: &T) -> Result<String, Status> {
    serde_json::to_string(value).map_err(|error| Status::internal(error.to_string()))
}

async fn workers(handle: &Handle, workers: &[WorkerStatus]) -> Result<Response<ListWorkersReply>, Status> {
    let refused = handle.refused().await.map_err(|error| errors::status(&error))?;
    let workers = workers.iter().map(json).collect::<Result<_, _>>()?;
    Ok(Response::new(ListWorkersReply { workers, refused: refused.iter().map(json).collect::<Result<_, _>>()? }))
}

#[tonic::async_trait]
impl Jobs for JobsService {
    async fn submit(&self, request: Request<SubmitRequest>) -> Result<Response<StatusReply>, Status> {
        let request = request.into_inner();
        let recipe: Recipe = serde_json::from_str(&request.recipe).map_err(|error| invalid("recipe", error))?;
        let job = job_id(&request.job)?;
        let submission = Submission { job, recipe, world_size: WorldSize(request.world_size) };
        let status = self.handle()?.submit(submission).await.map_err(|error| errors::status(&error))?;
        Ok(Response::new(streams::reply(&status)?))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        let jobs = self.handle()?.list().await.map_err(|error| errors::status(&error))?;
        let jobs = jobs.iter().map(|status| json(status.as_ref())).collect::<Result<_, _>>()?;
        Ok(Response::new(ListReply { jobs }))
    }

    async fn status(&self, request: Request<JobRequest>) -> Result<Response<StatusReply>, Status> {
        let job = job_id(&request.into_inner().job)?;
        let status = self.handle()?.status(&job).await.map_err(|error| errors::status(&error))?;
        Ok(Response::new(streams::reply(&status)?))
    }

    type WatchStream = ReceiverStream<Result<StatusReply, Status>>;

    async fn watch(&self, request: Request<JobRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let job = job_id(&request.into_inner().job)?;
        let status = self.handle()?.watch(&job).await.map_err(|error| errors::status(&error))?;
        let (outbox, messages) = mpsc::channel(streams::QUEUE);
        let (ended, last) = (status.clone(), outbox.clone());
        let following = self.shutdown.token().run_until_cancelled_owned(streams::follow_status(status, outbox));
        self.shutdown.spawn(async move {
            // `run` ends its server when it sees the job's end, which others who follow may not have been told yet.
            if following.await.is_none() {
                streams::tell_end(&ended, &last);
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    type EventsStream = ReceiverStream<Result<EventReply, Status>>;

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let request = request.into_inner();
        let job = job_id(&request.job)?;
        let handle = self.handle()?;
        handle.status(&job).await.map_err(|error| errors::status(&error))?;
        let (outbox, messages) = mpsc::channel(streams::QUEUE);
        self.stream(streams::follow_events(handle, job, request.after, request.follow, outbox));
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn stop(&self, request: Request<JobRequest>) -> Result<Response<StatusReply>, Status> {
        let job = job_id(&request.into_inner().job)?;
        let status = self.handle()?.stop(&job).await.map_err(|error| errors::status(&error))?;
        Ok(Response::new(streams::reply(&status)?))
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<StatusReply>, Status> {
        let request = request.into_inner();
        let job = job_id(&request.job)?;
        let resume = Resume {
            step: request.step.map(Step),
            world_size: request.world_size.map(WorldSize),
            weights: request.weights.into_iter().collect(),
        };
        let status = self.handle()?.resume(&job, resume).await.map_err(|error| errors::status(&error))?;
        Ok(Response::new(streams::reply(&status)?))
    }

    async fn list_workers(&self, _: Request<ListWorkersRequest>) -> Result<Response<ListWorkersReply>, Status> {
        let handle = self.handle()?;
        let workers = handle.workers().await.map_err(|error| errors::status(&error))?;
        self::workers(&handle, &workers).await
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<ListWorkersReply>, Status> {
        let DrainRequest { worker, undo } = request.into_inner();
        let worker = worker.parse().map_err(|error| invalid("worker", error))?;
        let handle = self.handle()?;
        let workers = handle.drain(&worker, undo).await.map_err(|error| errors::status(&error))?;
        self::workers(&handle, &workers).await
    }
}
