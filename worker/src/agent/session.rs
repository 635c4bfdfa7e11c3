//! The session to the coordinator that leads: opened again for ever, as the coordinator's absence is no reason to end anything.

use super::{
    message::{WorkerMessage, WorkerOrder},
    network::Network,
    wire::{self, Incoming},
};
use common::{
    daemon::backoff::{Backoff, spread_of},
    ids::WorkerId,
};
use proto::{
    leader::{self, Deposed, Named, Search, Term, Terms},
    v1::{ToWorker, workers_client::WorkersClient},
};
use std::{future::Future, time::Duration};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming, transport::Endpoint};

/// How many messages may wait for the network.
const WAITING_MESSAGES: usize = 256;
/// How long the coordinator may take to accept a connection, and then the session.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// How long a machine may take to accept a connection where another coordinator may lead: well below a worker's lease, so that one
/// that is off costs no worker its own.
const DIAL: Duration = Duration::from_millis(1_500);
/// How often a connection is tested, and how long the answer may take: a coordinator that was stopped, or whose machine is
/// gone, is left well before the next one counts this worker as lost.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// Waits between two tries.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The longest wait where another coordinator may lead soon.
const ELECTION: Duration = Duration::from_secs(1);
/// The largest message: as large as a frame of a trainer.
const MAX_MESSAGE_BYTES: usize = crate::supervisor::ipc::MAX_FRAME_BYTES as usize;

/// What happens to the session.
#[derive(Debug)]
pub enum SessionEvent {
    /// A session begins; the first message must be `Register`. The token ends it at once; when the sender is let go, it ends once the
    /// coordinator has all that was sent.
    Opened(mpsc::Sender<WorkerMessage>, CancellationToken),
    /// The coordinator orders something.
    Order(Box<WorkerOrder>),
    /// The session is open, with this coordinator.
    Registered(String),
    /// There is no session, for this reason.
    Closed(String),
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("cannot reach the coordinator: {}", deepest(.0))]
    Connect(#[from] tonic::transport::Error),
    #[error("{}", ended(.0))]
    Status(#[from] Status),
    #[error(transparent)]
    Deposed(#[from] Deposed),
    #[error("the coordinator did not answer within {} s", OPEN_DEADLINE.as_secs())]
    Deadline(#[from] tokio::time::error::Elapsed),
    #[error("the coordinator's first message is not that the worker is registered")]
    NotRegistered,
    #[error("the coordinator closed the session")]
    Closed,
    #[error("messages to the coordinator piled up")]
    PiledUp,
    #[error("the agent is ending")]
    Leaving,
}

impl SessionError {
    /// The coordinator knows this worker, and wants none of it: to ask again soon is of no use.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Status(status) if status.code() == Code::PermissionDenied)
    }

    /// What it says about who leads.
    fn named(&self) -> Named {
        match self {
            Self::Status(status) => leader::named(status),
            _ => Named::Unsaid,
        }
    }
}

fn ended(status: &Status) -> String {
    let message = status.message();
    // A refusal is a whole paragraph.
    if status.code() == Code::PermissionDenied {
        message.to_owned()
    } else {
        format!("the coordinator ended the session: {message}")
    }
}

fn deepest(error: &tonic::transport::Error) -> String {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// The way to the coordinator.
pub struct Session<F, N> {
    /// The coordinators, of which one leads.
    pub search: Search,
    /// Who this is.
    pub worker: WorkerId,
    /// Hands an event to the agent's loop; false when there is none any more.
    pub hand_over: F,
    /// How they are reached.
    pub network: N,
    /// Ends it all.
    pub token: CancellationToken,
}

impl<F, R, N> Session<F, N>
where
    N: Network,
    F: Fn(SessionEvent) -> R + Send + Sync,
    R: Future<Output = bool> + Send,
{
    /// Keeps a session open until the token ends it.
    pub async fn run(mut self) {
        let longest = if self.search.has_choice() { ELECTION } else { BACKOFF.1 };
        let mut backoff = Backoff::new(BACKOFF.0, longest);
        let spread = spread_of(self.worker.as_str());
        let mut told = String::new();
        let mut terms = Terms::default();
        while !self.token.is_cancelled() {
            let mut registered = false;
            let error = tokio::select! {
                biased;
                Err(error) = self.once(&mut terms, &mut registered) => error,
                () = self.token.cancelled() => SessionError::Leaving,
            };
            let leaving = self.token.is_cancelled() || matches!(error, SessionError::Leaving);
            if leaving || !(self.hand_over)(SessionEvent::Closed(error.to_string())).await {
                return;
            }
            if registered {
                backoff.reset();
                self.search.found();
            }
            let news = told.is_empty() || (error.is_refusal() && told != error.to_string());
            if registered || news || matches!(error, SessionError::Deposed(_)) {
                let coordinator = self.search.current();
                tracing::warn!(coordinator, %error, "no session, trying again until there is one; trainers go on");
                told = error.to_string();
            }
            if self.search.failed(error.named()) && !error.is_refusal() {
                continue;
            }
            let wait = if error.is_refusal() { BACKOFF.1 } else { backoff.next(spread) };
            tokio::select! {
                biased;
                () = sleep(wait) => {}
                () = self.token.cancelled() => return,
            }
        }
    }

    /// One session. It never ends well: it ends.
    async fn once(&self, terms: &mut Terms, registered: &mut bool) -> Result<(), SessionError> {
        let endpoint = Endpoint::from_shared(self.search.current().to_owned())?;
        let dial = if self.search.has_choice() { DIAL } else { OPEN_DEADLINE };
        let endpoint = endpoint.connect_timeout(dial).tcp_nodelay(true);
        let endpoint = endpoint.http2_keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE);
        let connecting = self.network.connect(endpoint.keep_alive_while_idle(true));
        let channel = timeout(dial, connecting).await??;
        let mut client = WorkersClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (sender, waiting) = mpsc::channel(WAITING_MESSAGES);
        let beats = sender.downgrade();
        let piled_up = self.token.child_token();
        if !(self.hand_over)(SessionEvent::Opened(sender, piled_up.clone())).await {
            return Err(SessionError::Leaving);
        }
        let (worker, newest) = (self.worker.clone(), terms.newest());
        let outgoing = ReceiverStream::new(waiting).map(move |message| wire::encode(&worker, newest, message));
        let mut incoming = timeout(OPEN_DEADLINE, client.session(outgoing)).await??.into_inner();
        let first = timeout(OPEN_DEADLINE, incoming.message()).await??.ok_or(SessionError::Closed)?;
        terms.admit(first.term.map(Term))?;
        let Ok(Incoming::Registered { lease }) = wire::decode(first) else {
            return Err(SessionError::NotRegistered);
        };
        *registered = true;
        let (coordinator, term) = (self.search.current(), terms.newest().map(|term| term.0));
        tracing::info!(coordinator, term, lease_s = lease.as_secs_f64(), "the session is open");
        if !(self.hand_over)(SessionEvent::Registered(coordinator.to_owned())).await {
            return Err(SessionError::Leaving);
        }
        tokio::select! {
            biased;
            result = self.obey(&mut incoming, terms) => result,
            error = beat(&beats, lease) => Err(error),
            () = piled_up.cancelled() => Err(SessionError::PiledUp),
        }
    }

    async fn obey(&self, incoming: &mut Streaming<ToWorker>, terms: &mut Terms) -> Result<(), SessionError> {
        while let Some(message) = incoming.message().await? {
            // An order of a leader that was deposed meanwhile is not obeyed, and the session with it is over.
            terms.admit(message.term.map(Term))?;
            match wire::decode(message) {
                Ok(Incoming::Order(order)) => {
                    if !(self.hand_over)(SessionEvent::Order(order)).await {
                        return Err(SessionError::Leaving);
                    }
                }
                Ok(Incoming::Registered { .. }) => {}
                Err(error) => tracing::error!(%error, "refused a message of the coordinator"),
            }
        }
        Err(SessionError::Closed)
    }
}

/// Says three times a lease that the worker lives, for as long as the agent holds the session's sender.
async fn beat(sender: &mpsc::WeakSender<WorkerMessage>, lease: Duration) -> SessionError {
    let mut beats = interval((lease / 3).max(Duration::from_millis(50)));
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beats.tick().await;
        let Some(sender) = sender.upgrade() else { return std::future::pending().await };
        if sender.send(WorkerMessage::Heartbeat).await.is_err() {
            return SessionError::Closed;
        }
    }
}
