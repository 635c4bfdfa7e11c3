//! Sessions of workers.

use super::{errors, wire};
use crate::runtime::{Handle, RuntimeError};
use common::daemon::shutdown::Shutdown;
use proto::v1::{FromWorker, Registered, ToWorker, to_worker::Message, workers_server::Workers};
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
    handle: Handle,
    shutdown: Shutdown,
}

impl WorkersService {
    pub(super) fn new(handle: Handle, shutdown: Shutdown) -> Self {
        Self { handle, shutdown }
    }
}

type Outbox = mpsc::Sender<Result<ToWorker, Status>>;

#[tonic::async_trait]
impl Workers for WorkersService {
    type SessionStream = ReceiverStream<Result<ToWorker, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<FromWorker>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outbox, messages) = mpsc::channel(QUEUE);
        let (handle, token) = (self.handle.clone(), self.shutdown.token());
        let inbound = request.into_inner();
        self.shutdown.spawn(async move {
            let session = talk(handle, inbound, &outbox);
            if let Some(Err(status)) = token.run_until_cancelled(session).await {
                // A worker that is gone need not hear why.
                let _ = outbox.try_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

async fn talk(handle: Handle, mut inbound: Streaming<FromWorker>, outbox: &Outbox) -> Result<(), Status> {
    let first = timeout(REGISTER, inbound.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("the first message did not come: it must be `register`"))??;
    let opening = wire::opening(first)?;
    let worker = opening.worker.clone();
    let lease = handle.lease();
    let mut session = handle.open(opening).await.map_err(|error| errors::status(&error))?;
    let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
    send(outbox, Message::Registered(Registered { lease_ms }), lease).await?;
    let ended = loop {
        tokio::select! {
            command = session.commands.recv() => {
                let Some(command) = command else {
                    break Err(errors::status(&RuntimeError::SessionOver(worker.clone())));
                };
                let sent = match wire::message(command) {
                    Ok(message) => send(outbox, message, lease).await,
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

async fn send(outbox: &Outbox, message: Message, deadline: Duration) -> Result<(), Status> {
    let message = ToWorker { message: Some(message) };
    let sent = outbox.send_timeout(Ok(message), deadline).await;
    sent.map_err(|_| Status::deadline_exceeded("the worker does not read its orders"))
}
