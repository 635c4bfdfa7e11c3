//! Speaks to a coordinator, in our own types.

use super::error::CliError;
use common::{
    daemon::backoff::Backoff,
    recipe::Recipe,
    refusal::Refused,
    status::{Event, JobStatus, WorkerStatus},
};
use proto::{
    leader::{self, Named, Search},
    v1::{
        DrainRequest, EventsRequest, JobRequest, ListRequest, ListWorkersReply, ListWorkersRequest, ResumeRequest,
        StatusReply, SubmitRequest, jobs_client::JobsClient,
    },
};
use serde::de::DeserializeOwned;
use std::{future::Future, time::Duration};
use tokio::time::{Instant, sleep};
use tonic::{
    Code, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

/// How long a coordinator may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long to look for a leader among several coordinators: a lease has to lapse before another one leads.
const SEARCH: Duration = Duration::from_secs(60);
/// How often a connection with a call on it is tested, and how long the answer may take: a coordinator that was stopped, or
/// whose machine is gone, is left.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// Waits between two rounds over the coordinators.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// A connection to the coordinator that leads.
#[derive(Debug, Clone)]
pub(super) struct Client {
    search: Search,
    jobs: JobsClient<Channel>,
}

/// The workers, and who asked to be one and was refused.
#[derive(Debug, serde::Serialize)]
pub(super) struct Workers {
    pub workers: Vec<WorkerStatus>,
    pub refused: Vec<Refused>,
}

impl Workers {
    fn read(reply: &ListWorkersReply) -> Result<Self, CliError> {
        let workers = reply.workers.iter().map(|worker| read(worker)).collect::<Result<_, _>>()?;
        let refused = reply.refused.iter().map(|refused| read(refused)).collect::<Result<_, _>>()?;
        Ok(Self { workers, refused })
    }
}

/// Whether a call may be made again when it is not known if it was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    Yes,
    No,
}

fn read<T: DeserializeOwned>(json: &str) -> Result<T, CliError> {
    serde_json::from_str(json).map_err(|error| {
        CliError::new(1, format!("the coordinator's answer cannot be read ({error}): is it of another version?"))
    })
}

fn status(reply: StatusReply) -> Result<JobStatus, CliError> {
    read(&reply.status)
}

fn endpoint(url: &str) -> Result<Endpoint, CliError> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|error| CliError::usage(format!("`{url}` is no address such as http://10.0.0.1:7070: {error}")))?;
    Ok(endpoint.connect_timeout(CONNECT).http2_keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE))
}

/// Whether the coordinator is gone, and not that it answered so.
fn is_lost(status: &Status) -> bool {
    status.code() == Code::Unavailable || std::error::Error::source(status).is_some()
}

impl Client {
    /// Connects to the first of a list of coordinators (URLs, with commas between them) that answers.
    pub(super) async fn connect(urls: &str) -> Result<Self, CliError> {
        let mut search = Search::parse(urls).map_err(CliError::usage)?;
        for url in search.addresses().to_vec() {
            if let Ok(channel) = endpoint(&url)?.connect().await {
                return Ok(Self { search, jobs: JobsClient::new(channel) });
            }
            search.failed(Named::Unsaid);
        }
        Err(CliError::contact(format!("no coordinator answers at {urls}: is `llm2clip serve` running there?")))
    }

    /// Has the leader answer a call: goes where a standby points, and with several coordinators to choose from waits
    /// until one leads.
    async fn call<T, F>(&mut self, again: Again, ask: impl Fn(JobsClient<Channel>) -> F) -> Result<T, CliError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let began = Instant::now();
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let mut told = false;
        loop {
            let status = match ask(self.jobs.clone()).await {
                Ok(reply) => {
                    self.search.found();
                    return Ok(reply.into_inner());
                }
                Err(status) => status,
            };
            let named = leader::named(&status);
            let again = again == Again::Yes && is_lost(&status) && self.search.has_choice();
            if (named == Named::Unsaid && !again) || began.elapsed() > SEARCH {
                return Err(status.into());
            }
            if !self.search.failed(named) {
                if !told {
                    eprintln!("no coordinator leads yet; looking for one for {} s", SEARCH.as_secs());
                    told = true;
                }
                sleep(backoff.next(0.5)).await;
            }
            self.jobs = JobsClient::new(endpoint(self.search.current())?.connect_lazy());
        }
    }

    pub(super) async fn submit(&mut self, job: &str, recipe: &Recipe, world_size: u32) -> Result<JobStatus, CliError> {
        let recipe = serde_json::to_string(recipe).expect("a recipe is JSON");
        let request = SubmitRequest { recipe, world_size, job: job.to_owned() };
        status(
            self.call(Again::Yes, |mut jobs| {
                let request = request.clone();
                async move { jobs.submit(request).await }
            })
            .await?,
        )
    }

    pub(super) async fn list(&mut self) -> Result<Vec<JobStatus>, CliError> {
        let reply = self.call(Again::Yes, |mut jobs| async move { jobs.list(ListRequest {}).await }).await?;
        reply.jobs.iter().map(|job| read(job)).collect()
    }

    pub(super) async fn status(&mut self, job: &str) -> Result<JobStatus, CliError> {
        let request = JobRequest { job: job.to_owned() };
        status(
            self.call(Again::Yes, |mut jobs| {
                let request = request.clone();
                async move { jobs.status(request).await }
            })
            .await?,
        )
    }

    pub(super) async fn stop(&mut self, job: &str) -> Result<JobStatus, CliError> {
        let request = JobRequest { job: job.to_owned() };
        status(
            self.call(Again::Yes, |mut jobs| {
                let request = request.clone();
                async move { jobs.stop(request).await }
            })
            .await?,
        )
    }

    pub(super) async fn resume(
        &mut self,
        job: &str,
        step: Option<u64>,
        world_size: Option<u32>,
        weights: &[(String, u32)],
    ) -> Result<JobStatus, CliError> {
        let (job, weights) = (job.to_owned(), weights.iter().cloned().collect());
        let request = ResumeRequest { job, step, world_size, weights };
        // Twice would find the job resumed already, and refuse.
        status(
            self.call(Again::No, |mut jobs| {
                let request = request.clone();
                async move { jobs.resume(request).await }
            })
            .await?,
        )
    }

    pub(super) async fn drain(&mut self, worker: &str, undo: bool) -> Result<Workers, CliError> {
        let request = DrainRequest { worker: worker.to_owned(), undo };
        let reply = self
            .call(Again::Yes, |mut jobs| {
                let request = request.clone();
                async move { jobs.drain(request).await }
            })
            .await?;
        Workers::read(&reply)
    }

    pub(super) async fn workers(&mut self) -> Result<Workers, CliError> {
        let reply =
            self.call(Again::Yes, |mut jobs| async move { jobs.list_workers(ListWorkersRequest {}).await }).await?;
        Workers::read(&reply)
    }

    /// The status now and after each change, until the job has ended.
    pub(super) async fn watch(&mut self, job: &str) -> Result<Watch, CliError> {
        let stream = self.open_watch(job).await?;
        Ok(Watch { client: self.clone(), job: job.to_owned(), stream, ended: false })
    }

    async fn open_watch(&mut self, job: &str) -> Result<Streaming<StatusReply>, CliError> {
        let request = JobRequest { job: job.to_owned() };
        let ask = |mut jobs: JobsClient<Channel>| {
            let request = request.clone();
            async move { jobs.watch(request).await }
        };
        self.call(Again::Yes, ask).await
    }

    /// Events after a number; with `follow`, new ones until the job has ended.
    pub(super) async fn events(&mut self, job: &str, after: u64, follow: bool) -> Result<Events, CliError> {
        let stream = self.open_events(job, after, follow).await?;
        Ok(Events { client: self.clone(), job: job.to_owned(), after, follow, stream })
    }

    async fn open_events(
        &mut self,
        job: &str,
        after: u64,
        follow: bool,
    ) -> Result<Streaming<proto::v1::EventReply>, CliError> {
        let request = EventsRequest { job: job.to_owned(), after, follow };
        let ask = |mut jobs: JobsClient<Channel>| {
            let request = request.clone();
            async move { jobs.events(request).await }
        };
        self.call(Again::Yes, ask).await
    }

    /// Whether a stream that broke may go on with another coordinator.
    fn may_go_on(&self, status: &Status) -> bool {
        is_lost(status) && self.search.has_choice()
    }
}

/// A job's status as it changes. With several coordinators to choose from it outlives the one that leads.
pub(super) struct Watch {
    client: Client,
    job: String,
    stream: Streaming<StatusReply>,
    ended: bool,
}

impl Watch {
    pub(super) async fn next(&mut self) -> Result<Option<JobStatus>, CliError> {
        loop {
            match self.stream.message().await {
                Ok(Some(reply)) => {
                    let status: JobStatus = read(&reply.status)?;
                    self.ended = status.phase.exit_code().is_some();
                    return Ok(Some(status));
                }
                Ok(None) if self.ended || !self.client.search.has_choice() => return Ok(None),
                Err(status) if !self.client.may_go_on(&status) => return Err(status.into()),
                Ok(None) | Err(_) => self.stream = self.client.open_watch(&self.job).await?,
            }
        }
    }
}

/// A job's events. With several coordinators to choose from they outlive the one that leads; none is told twice.
pub(super) struct Events {
    client: Client,
    job: String,
    after: u64,
    follow: bool,
    stream: Streaming<proto::v1::EventReply>,
}

impl Events {
    pub(super) async fn next(&mut self) -> Result<Option<Event>, CliError> {
        loop {
            match self.stream.message().await {
                Ok(Some(reply)) => {
                    let event: Event = read(&reply.event)?;
                    self.after = event.sequence;
                    return Ok(Some(event));
                }
                Ok(None) if !self.follow || !self.client.search.has_choice() => return Ok(None),
                Err(status) if !self.client.may_go_on(&status) => return Err(status.into()),
                // A stream also ends in good order with the coordinator that it came from.
                Ok(None) => {
                    self.follow = self.client.status(&self.job).await?.phase.exit_code().is_none();
                    self.stream = self.client.open_events(&self.job, self.after, self.follow).await?;
                }
                Err(_) => self.stream = self.client.open_events(&self.job, self.after, self.follow).await?,
            }
        }
    }
}
