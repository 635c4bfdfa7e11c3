//! Everything that the loop hears.

use super::RuntimeError;
use crate::job::{Command, Event, LivingTrainer, Submission};
use common::{
    ids::{JobId, WorkerId},
    refusal::{Refusal, Refused},
    status::{self, Inventory, JobStatus, WorkerStatus},
};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, RuntimeError>>;

/// One thing to do.
pub(super) enum Input {
    Submit(Box<Submission>, Reply<Arc<JobStatus>>),
    List(Reply<Vec<Arc<JobStatus>>>),
    Watch(JobId, Reply<watch::Receiver<Arc<JobStatus>>>),
    Events(JobId, u64, Reply<Vec<status::Event>>),
    Ask(JobId, Event, Reply<Arc<JobStatus>>),
    Workers(Reply<Vec<WorkerStatus>>),
    /// Drain it; or, with `true`, make it one like others again.
    Drain(WorkerId, bool, Reply<Vec<WorkerStatus>>),
    Refused(Reply<Vec<Refused>>),
    /// A worker that its API cannot talk to; the answer is what to tell it.
    Refuse(WorkerId, String, Refusal, Reply<String>),
    Open(Opening, mpsc::Sender<Command>, Reply<SessionId>),
    Report(WorkerId, SessionId, Report, Reply<()>),
    Closed(WorkerId, SessionId),
}

/// Tells the sessions of a worker apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SessionId(pub(super) u64);

/// Tells the daemons apart that call themselves by one id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incarnation {
    /// The daemon's state folder.
    pub instance: String,
    /// Which daemon over that folder: a later one has a higher number.
    pub number: u64,
}

/// What a worker says first.
#[derive(Debug, Clone, PartialEq)]
pub struct Opening {
    /// Its id.
    pub worker: WorkerId,
    /// Which daemon of that id it is.
    pub incarnation: Incarnation,
    /// What it has.
    pub inventory: Inventory,
    /// The trainers that live on it.
    pub living: Vec<(JobId, LivingTrainer)>,
}

/// What a worker says later.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// It is there.
    Heartbeat,
    /// Its machine is being taken away.
    Leaving,
    /// Something happened to a job of it.
    Job(JobId, Box<Event>),
}
