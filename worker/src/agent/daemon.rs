//! The one loop: events come in, the state decides, actions go out.

use super::{
    config::Config,
    identity::Identity,
    message::{Ended, TrainerRef, WorkerMessage, WorkerReport},
    network::{Network, Tcp},
    session::{Session, SessionEvent},
    state::{Action, State},
};
use crate::supervisor::{Assignment, Found, Host, Settings, Steer, Supervisor, SupervisorError, SupervisorEvent};
use common::{
    daemon::{notify::Manager, shutdown::Shutdown},
    ids::Slot,
};
use proto::leader::Search;
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::PathBuf,
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

/// How many events may wait for the loop.
const WAITING_EVENTS: usize = 256;
/// How long the coordinator may take to hear the last that was said.
const LAST_WORD: Duration = Duration::from_secs(2);
/// How long the session may take to end.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(2);
/// How long before the end of a grace what is left is ended: trainers that do not listen are killed after 10 s.
const LAST: Duration = Duration::from_secs(12);

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The worker's folder or its trainers.
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
    /// The record of which daemon this is.
    #[error("cannot write identity.json in {state}: {source}; choose another folder with --state")]
    Identity {
        /// The worker's folder.
        state: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No coordinator's address.
    #[error("{0}")]
    NoAddress(String),
    /// The coordinator's address.
    #[error("`{url}` is no address of a coordinator: {source}; it looks like http://10.0.0.1:7070")]
    Address {
        /// As given.
        url: String,
        /// What is wrong with it.
        source: tonic::transport::Error,
    },
}

/// What the agent is told from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// End; trainers go on and wait for the next agent.
    Alone,
    /// End all trainers, then end.
    WithTrainers,
    /// The machine is taken away after this time: trainers write a checkpoint and stop, what is left then is ended.
    Preempted(Duration),
}

/// All that can happen.
#[derive(Debug)]
enum Event {
    Session(SessionEvent),
    Supervisor(SupervisorEvent),
    Leave(Leaving),
    GraceOver,
}

/// What an agent has around it.
pub struct Surroundings<N, H> {
    /// Which daemon of its id it is.
    pub identity: Identity,
    /// Who is told that it is ready, how it does and, by its one loop, that it lives.
    pub manager: Manager,
    /// How it reaches coordinators.
    pub network: N,
    /// Where its trainers run.
    pub host: H,
    /// What happens to them.
    pub events: mpsc::Receiver<SupervisorEvent>,
}

/// Runs the agent of this machine until `leave` says how to end.
///
/// # Errors
/// When it cannot begin.
pub async fn run(config: Config, manager: Manager, leave: impl Future<Output = Leaving>) -> Result<(), AgentError> {
    search(&config)?;
    let (supervisor_events, events) = mpsc::channel(WAITING_EVENTS);
    let settings = Settings {
        state: config.state.clone(),
        worker: config.worker.clone(),
        threads: config.threads,
        peer_host: config.peer_host.clone(),
        lease: config.lease,
        ranks_per_gpu: config.ranks_per_gpu,
    };
    let host = Supervisor::open(settings, supervisor_events)?;
    // The supervisor holds the folder's lock.
    let failed = |source| AgentError::Identity { state: config.state.clone(), source };
    let identity = Identity::begin(&config.state).map_err(failed)?;
    run_in(config, Surroundings { identity, manager, network: Tcp, host, events }, leave).await
}

fn search(config: &Config) -> Result<Search, AgentError> {
    let search = Search::parse(&config.coordinator).map_err(AgentError::NoAddress)?;
    for url in search.addresses() {
        let address = |source| AgentError::Address { url: url.clone(), source };
        Endpoint::from_shared(url.clone()).map_err(address)?;
    }
    Ok(search)
}

/// Runs an agent among these surroundings until `leave` says how to end.
///
/// # Errors
/// When it cannot begin.
pub async fn run_in<N: Network, H: Host>(
    config: Config,
    surroundings: Surroundings<N, H>,
    leave: impl Future<Output = Leaving>,
) -> Result<(), AgentError> {
    let Surroundings { identity, manager, network, host, events: mut from_supervisor } = surroundings;
    let search = search(&config)?;
    let found = host.adopt()?;
    let state = State::new(config.inventory.trainers);
    let (session_events, mut from_session) = mpsc::channel(WAITING_EVENTS);
    let shutdown = Shutdown::new();
    let worker = config.worker.clone();
    let hand_over = move |event| {
        let events = session_events.clone();
        async move { events.send(event).await.is_ok() }
    };
    let session = "no session with a coordinator yet".to_owned();
    let mut agent =
        Agent { config, identity, host, state, handles: BTreeMap::new(), outbox: None, session, left: false };
    agent.take_up(found);
    // A worker without a coordinator does what it is there for: it keeps its trainers, and nothing gets better by a restart of it.
    let mut told = agent.standing();
    manager.ready(&told);
    shutdown.spawn(Session { search, worker, hand_over, network, token: shutdown.token() }.run());
    tokio::pin!(leave);
    let mut asked = false;
    let mut grace_until = None;
    while !agent.left {
        let event = tokio::select! {
            biased; // A sign of life; then, what became of a trainer goes before an order that may be about it.
            () = manager.due() => {
                manager.alive();
                continue;
            }
            leaving = &mut leave, if !asked => Event::Leave(leaving),
            Some(event) = from_supervisor.recv() => Event::Supervisor(event),
            Some(event) = from_session.recv() => Event::Session(event),
            () = sleep_until(grace_until.unwrap_or_else(Instant::now)), if grace_until.is_some() => Event::GraceOver,
        };
        asked |= matches!(event, Event::Leave(_));
        if matches!(event, Event::Leave(_)) {
            manager.stopping();
        }
        grace_until = match event {
            Event::Leave(Leaving::Preempted(grace)) => Some(Instant::now() + grace.saturating_sub(LAST)),
            Event::GraceOver => None,
            _ => grace_until,
        };
        agent.handle(event);
        let standing = agent.standing();
        if !asked && standing != told {
            manager.status(&standing);
            told = standing;
        }
    }
    let talking = agent.outbox.is_some();
    drop(agent);
    if talking {
        // How the last trainers ended is part of it: a coordinator that did not hear of it would count them as lost, a lease later.
        let over = async { while !matches!(from_session.recv().await, Some(SessionEvent::Closed(_)) | None) {} };
        if timeout(LAST_WORD, over).await.is_err() {
            tracing::warn!("the coordinator may not have heard the last that this worker had to say");
        }
    }
    if !shutdown.finish(SHUTDOWN_DEADLINE).await {
        tracing::warn!("the session did not end in time");
    }
    Ok(())
}

struct Agent<H: Host> {
    config: Config,
    identity: Identity,
    host: H,
    state: State,
    handles: BTreeMap<Slot, H::Handle>,
    /// The session's; absent while there is none.
    outbox: Option<(mpsc::Sender<WorkerMessage>, CancellationToken)>,
    /// How it stands with the coordinator, in words.
    session: String,
    left: bool,
}

impl<H: Host> Agent<H> {
    /// Makes the trainers of the agent before this one its own.
    fn take_up(&mut self, found: Vec<Found<H::Handle>>) {
        for Found { record, now } in found {
            let trainer = TrainerRef { job: record.job, generation: record.generation, slot: record.slot };
            match now {
                Ok(handle) => {
                    self.state.adopted(trainer, record.pid, record.peer, record.log);
                    self.handles.insert(record.slot, handle);
                }
                Err(exit) => {
                    let (pid, log, last_lines) = (Some(record.pid), Some(record.log), exit.last_lines);
                    let end = Ended { trainer, cause: exit.exit.cause(None), pid, last_lines, log };
                    let actions = self.state.ended_as(end);
                    self.act(actions);
                }
            }
        }
    }

    /// How it does, for whoever looks at the service.
    fn standing(&self) -> String {
        match self.handles.len() {
            1 => format!("{}; 1 trainer", self.session),
            count => format!("{}; {count} trainers", self.session),
        }
    }

    fn handle(&mut self, event: Event) {
        let actions = match event {
            Event::Session(SessionEvent::Opened(sender, token)) => self.opened(sender, token),
            Event::Session(SessionEvent::Order(order)) => self.state.order(*order),
            Event::Session(SessionEvent::Registered(coordinator)) => {
                self.session = format!("connected to {coordinator}");
                Vec::new()
            }
            Event::Session(SessionEvent::Closed(why)) => {
                self.session = format!("no session: {why}");
                self.outbox = None;
                self.state.disconnected();
                Vec::new()
            }
            Event::Supervisor(SupervisorEvent::Report { slot, pid, report }) => self.state.report(slot, pid, *report),
            Event::Supervisor(SupervisorEvent::Ended(end)) => {
                tracing::info!(slot = %end.slot, pid = end.pid, exit = ?end.exit, "a trainer ended");
                self.handles.remove(&end.slot);
                self.state.ended(end)
            }
            Event::Supervisor(SupervisorEvent::Pulse { slot, pid, pulse }) => self.state.pulse(slot, pid, pulse),
            Event::Leave(Leaving::Alone) => {
                self.left = true;
                Vec::new()
            }
            Event::Leave(Leaving::WithTrainers) | Event::GraceOver => self.state.leave(),
            Event::Leave(Leaving::Preempted(_)) => self.state.preempt(),
        };
        self.act(actions);
    }

    fn opened(&mut self, sender: mpsc::Sender<WorkerMessage>, token: CancellationToken) -> Vec<Action> {
        self.outbox = Some((sender, token));
        let (inventory, trainers) = (self.config.inventory.clone(), self.state.living());
        self.tell(WorkerMessage::Register { identity: self.identity.clone(), inventory, trainers });
        self.state.connected()
    }

    fn act(&mut self, actions: Vec<Action>) {
        let mut waiting = VecDeque::from(actions);
        while let Some(action) = waiting.pop_front() {
            match action {
                Action::Start(assignment) => match self.host.start(&assignment) {
                    Ok(handle) => {
                        self.state.started(&assignment, handle.pid(), handle.log().to_owned());
                        self.handles.insert(assignment.slot, handle);
                    }
                    Err(error) => {
                        let Assignment { slot, job, .. } = &assignment;
                        tracing::error!(%slot, %job, %error, "could not start a trainer");
                        waiting.extend(self.state.not_started(&assignment, error.to_string()));
                    }
                },
                Action::Order(slot, order) => self.with(slot, |trainer| trainer.order(order)),
                Action::Remember(slot, generation, peer) => {
                    self.with(slot, |trainer| trainer.remember(generation, peer));
                }
                Action::End(slot, grace) => self.with(slot, |trainer| trainer.end(grace)),
                Action::EndStuck(slot) => self.with(slot, Steer::end_stuck),
                Action::Tell(report) => self.tell(WorkerMessage::Report(report)),
                Action::TellLeaving => self.tell(WorkerMessage::Leaving),
                Action::Leave => self.left = true,
            }
        }
    }

    fn with(&self, slot: Slot, act: impl FnOnce(&H::Handle)) {
        if let Some(handle) = self.handles.get(&slot) {
            act(handle);
        }
    }

    /// Puts a message on its way. When too many wait, progress is left out, and for anything else the session is begun
    /// anew: what matters is told again then.
    fn tell(&self, message: WorkerMessage) {
        let Some((sender, token)) = &self.outbox else { return };
        match sender.try_send(message) {
            Ok(())
            | Err(mpsc::error::TrySendError::Full(WorkerMessage::Report(
                WorkerReport::Progress { .. } | WorkerReport::Pulse { .. },
            ))) => {}
            Err(_) => token.cancel(),
        }
    }
}
