//! Sessions of workers.

use super::{errors, wire};
use crate::{
    election::{Office, Seats},
    runtime::RuntimeError,
};
use common::daemon::shutdown::Shutdown;
use proto::{
    leader::{Term, Terms},
    v1::{FromWorker, Registered, ToWorker, to_worker::Message, workers_server::Workers},
};
use std::time::Duration;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// How long a worker may take to say who it is.
const REGISTER: Duration = Duration::from_secs(10);
/// How many messages may wait for the connection.
const QUEUE: usize = 64;

/// The service `Workers`.
pub(super) struct WorkersService {
    seats: Seats,
    shutdown: Shutdown,
}

impl WorkersService {
    pub(super) fn new(seats: Seats, shutdown: Shutdown) -> Self {
        Self { seats, shutdown }
    }
}

/// The way to a worker. All that goes there carries the leader's term.
struct Outbox {
    queue: mpsc::Sender<Result<ToWorker, Status>>,
    office: Office,
}

impl Outbox {
    /// Sends, if this coordinator may still act.
    async fn send(&self, message: Message, deadline: Duration) -> Result<(), Status> {
        self.office.authority.check().map_err(|error| errors::status(&error))?;
        let message = ToWorker { message: Some(message), term: self.office.term.map(|term| term.0) };
        let sent = self.queue.send_timeout(Ok(message), deadline).await;
        sent.map_err(|_| Status::deadline_exceeded("the worker does not read its orders"))
    }
}

#[tonic::async_trait]
impl Workers for WorkersService {
    type SessionStream = ReceiverStream<Result<ToWorker, Status>>;

    async fn session(&self, request: Request<Streaming<FromWorker>>) -> Result<Response<Self::SessionStream>, Status> {
        let office = errors::office(&self.seats)?;
        let (queue, messages) = mpsc::channel(QUEUE);
        let (seats, token) = (self.seats.clone(), self.shutdown.token());
        let inbound = request.into_inner();
        self.shutdown.spawn(async move {
            let outbox = Outbox { queue, office };
            if let Some(Err(status)) = token.run_until_cancelled(talk(inbound, &outbox)).await {
                // Where another leads by now, that is what the worker needs to know.
                let status = errors::office(&seats).err().unwrap_or(status);
                // A worker that is gone need not hear why.
                let _ = outbox.queue.try_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

async fn talk(mut inbound: Streaming<FromWorker>, outbox: &Outbox) -> Result<(), Status> {
    let handle = &outbox.office.handle;
    let first = timeout(REGISTER, inbound.message()).await;
    let first =
        first.map_err(|_| Status::deadline_exceeded("the first message did not come: it must be `register`"))??;
    let register = wire::register(first)?;
    let protocol = match wire::protocol(&register) {
        Ok(protocol) => protocol,
        Err((worker, host, refusal)) => {
            let told = handle.refuse(worker, host, refusal).await;
            return Err(errors::status(&told.map_or_else(|error| error, RuntimeError::RefusedWorker)));
        }
    };
    let (opening, newest) = wire::opening(register)?;
    let mut seen = Terms::default();
    seen.admit(newest.map(Term)).and_then(|()| seen.admit(outbox.office.term)).map_err(errors::deposed)?;
    let worker = opening.worker.clone();
    let lease = handle.lease();
    let mut session = handle.open(opening).await.map_err(|error| errors::status(&error))?;
    let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
    outbox.send(Message::Registered(Registered { lease_ms, protocol }), lease).await?;
    let ended = loop {
        tokio::select! {
            biased; // Orders first: they are few, and what a worker says does not outrun them.
            command = session.commands.recv() => {
                let Some(command) = command else {
                    break Err(errors::status(&RuntimeError::SessionOver(worker.clone())));
                };
                let sent = match wire::message(command) {
                    Ok(message) => outbox.send(message, lease).await,
                    Err(status) => Err(status),
                };
                if sent.is_err() {
                    break sent;
                }
            }
            message = inbound.message() => match message {
                Ok(Some(message)) => match wire::report(&worker, message) {
                    Ok(report) => if let Err(error) = session.report(report).await {
                        break Err(errors::status(&error));
                    },
                    Err(status) => tracing::warn!(worker = %worker, %status, "passed over a message"),
                },
                Ok(None) => break Ok(()),
                Err(status) => break Err(status),
            },
        }
    };
    session.close().await;
    ended
}
