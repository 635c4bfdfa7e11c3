//! How others talk to the loop.

use super::{
    Opening, Report, RuntimeError,
    input::{Input, Reply, SessionId},
};
use crate::job::{Command, Event, Resume, Submission};
use common::{
    ids::{JobId, WorkerId},
    refusal::{Refusal, Refused},
    status::{self, JobStatus, WorkerStatus},
};
use std::{sync::Arc, time::Duration};
use tokio::sync::{mpsc, oneshot, watch};

/// How long the loop may take to answer.
const ANSWER: Duration = Duration::from_secs(20);
/// How many commands may wait for a worker.
const COMMANDS: usize = 256;

/// Talks to the loop; clones talk to the same one.
#[derive(Clone)]
pub struct Handle {
    inputs: mpsc::Sender<Input>,
    lease: Duration,
}

impl Handle {
    pub(super) fn new(inputs: mpsc::Sender<Input>, lease: Duration) -> Self {
        Self { inputs, lease }
    }

    /// How long a worker counts as living after it was last heard of.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// Takes up a job; a repeated submission is the same job.
    ///
    /// # Errors
    /// When the id, the output folder or the number of trainers does not do.
    pub async fn submit(&self, submission: Submission) -> Result<Arc<JobStatus>, RuntimeError> {
        self.ask(|reply| Input::Submit(Box::new(submission), reply)).await
    }

    /// All jobs, newest first.
    ///
    /// # Errors
    /// When the loop has ended.
    pub async fn list(&self) -> Result<Vec<Arc<JobStatus>>, RuntimeError> {
        self.ask(Input::List).await
    }

    /// One job.
    ///
    /// # Errors
    /// When there is no such job.
    pub async fn status(&self, job: &JobId) -> Result<Arc<JobStatus>, RuntimeError> {
        Ok(self.watch(job).await?.borrow().clone())
    }

    /// One job, and all that becomes of it.
    ///
    /// # Errors
    /// When there is no such job.
    pub async fn watch(&self, job: &JobId) -> Result<watch::Receiver<Arc<JobStatus>>, RuntimeError> {
        self.ask(|reply| Input::Watch(job.clone(), reply)).await
    }

    /// The events after a number that are kept, oldest first.
    ///
    /// # Errors
    /// When there is no such job.
    pub async fn events(&self, job: &JobId, after: u64) -> Result<Vec<status::Event>, RuntimeError> {
        self.ask(|reply| Input::Events(job.clone(), after, reply)).await
    }

    /// Ends a job with a checkpoint; returns at once.
    ///
    /// # Errors
    /// When there is no such job.
    pub async fn stop(&self, job: &JobId) -> Result<Arc<JobStatus>, RuntimeError> {
        self.request(job, Event::Stop).await
    }

    /// Has a job that ended go on.
    ///
    /// # Errors
    /// When it has not ended, has succeeded, or lacks the checkpoint.
    pub async fn resume(&self, job: &JobId, resume: Resume) -> Result<Arc<JobStatus>, RuntimeError> {
        self.request(job, Event::Resume(resume)).await
    }

    /// Says that all trainers of a job are dead and no worker will report it: the machine of a local job was restarted, or
    /// its coordinator was killed together with its workers. A job that has ended stays as it is.
    ///
    /// # Errors
    /// When there is no such job.
    pub async fn abandon(&self, job: &JobId) -> Result<Arc<JobStatus>, RuntimeError> {
        self.request(job, Event::Abandoned).await
    }

    /// All workers that ever registered with this process, by id.
    ///
    /// # Errors
    /// When the loop has ended.
    pub async fn workers(&self) -> Result<Vec<WorkerStatus>, RuntimeError> {
        self.ask(Input::Workers).await
    }

    /// Gives a worker no new trainers, or, with `undo`, makes it one like others again. Jobs on it write a checkpoint and go on
    /// elsewhere. Returns all workers.
    ///
    /// # Errors
    /// When no such worker is known.
    pub async fn drain(&self, worker: &WorkerId, undo: bool) -> Result<Vec<WorkerStatus>, RuntimeError> {
        self.ask(|reply| Input::Drain(worker.clone(), undo, reply)).await
    }

    /// Who asked to be taken in and was not, newest first.
    ///
    /// # Errors
    /// When the loop has ended.
    pub async fn refused(&self) -> Result<Vec<Refused>, RuntimeError> {
        self.ask(Input::Refused).await
    }

    /// Keeps that a worker of a machine `host` was refused; returns what to tell it.
    ///
    /// # Errors
    /// When the loop has ended.
    pub async fn refuse(&self, worker: WorkerId, host: String, refusal: Refusal) -> Result<String, RuntimeError> {
        self.ask(|reply| Input::Refuse(worker, host, refusal, reply)).await
    }

    /// Opens a worker's session; it replaces the one before.
    ///
    /// # Errors
    /// When the worker is refused, or the loop has ended.
    pub async fn open(&self, opening: Opening) -> Result<Session, RuntimeError> {
        let (sender, commands) = mpsc::channel(COMMANDS);
        let worker = opening.worker.clone();
        let session = self.ask(|reply| Input::Open(opening, sender, reply)).await?;
        Ok(Session { worker, session, handle: self.clone(), commands })
    }

    async fn request(&self, job: &JobId, event: Event) -> Result<Arc<JobStatus>, RuntimeError> {
        self.ask(|reply| Input::Ask(job.clone(), event, reply)).await
    }

    async fn ask<T>(&self, input: impl FnOnce(Reply<T>) -> Input) -> Result<T, RuntimeError> {
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            self.inputs.send(input(reply)).await.map_err(|_| RuntimeError::Closed)?;
            answer.await.map_err(|_| RuntimeError::Closed)?
        };
        tokio::time::timeout(ANSWER, exchange).await.map_err(|_| RuntimeError::Slow(ANSWER))?
    }
}

/// A worker's session.
pub struct Session {
    worker: WorkerId,
    session: SessionId,
    handle: Handle,
    /// What the worker is to do; ends when the session was replaced or its lease lapsed.
    pub commands: mpsc::Receiver<Command>,
}

impl Session {
    /// Passes on what the worker says.
    ///
    /// # Errors
    /// When the session is over.
    pub async fn report(&self, report: Report) -> Result<(), RuntimeError> {
        self.handle.ask(|reply| Input::Report(self.worker.clone(), self.session, report, reply)).await
    }

    /// The worker hung up; its lease goes on.
    pub async fn close(self) {
        let closed = Input::Closed(self.worker, self.session);
        // A loop that has ended needs no word, and one that hangs is told by the lease.
        let _ = tokio::time::timeout(ANSWER, self.handle.inputs.send(closed)).await;
    }
}
