//! The server.

use super::{admission::admit, jobs::JobsService, sessions::WorkersService};
use crate::election::Seats;
use common::daemon::shutdown::Shutdown;
use proto::v1::{jobs_server::JobsServer, workers_server::WorkersServer};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_stream::Stream;
use tonic::{
    service::interceptor::InterceptedService,
    transport::{
        Server,
        server::{Connected, TcpIncoming},
    },
};

/// The largest message: a manifest lists every tensor of every rank.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// How often a silent connection is asked whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long open calls may take to end at shutdown.
const DRAIN: Duration = Duration::from_secs(5);

/// The server failed.
#[derive(Debug, thiserror::Error)]
#[error("the gRPC server failed: {0}")]
pub struct ServeError(#[from] tonic::transport::Error);

/// Serves until shutdown begins; open streams end then. While another coordinator leads, every answer names it.
///
/// # Errors
/// When the server fails.
pub async fn serve(listener: TcpListener, seats: Seats, shutdown: Shutdown) -> Result<(), ServeError> {
    serve_on(TcpIncoming::from(listener).with_nodelay(Some(true)), seats, shutdown).await
}

/// The same over any connections.
///
/// # Errors
/// When the server fails.
pub async fn serve_on<C>(
    connections: impl Stream<Item = io::Result<C>>,
    seats: Seats,
    shutdown: Shutdown,
) -> Result<(), ServeError>
where
    C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    C::ConnectInfo: Clone + Send + Sync + 'static,
{
    let token = shutdown.token();
    let jobs = JobsServer::new(JobsService::new(seats.clone(), shutdown.clone()));
    let jobs = jobs.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES);
    let workers = WorkersServer::new(WorkersService::new(seats, shutdown.clone()));
    let workers = workers.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(InterceptedService::new(jobs, admit))
        .add_service(InterceptedService::new(workers, admit))
        .serve_with_incoming_shutdown(connections, token.clone().cancelled_owned());
    let overdue = async {
        token.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        result = server => Ok(result?),
        () = overdue => Ok(()),
    }
}
