//! tonic over the simulated network.

use hyper_util::rt::TokioIo;
use proto::v1::jobs_client::JobsClient;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    codegen::{Service, http::Uri},
    transport::{Channel, Endpoint, Error, server::Connected},
};
use turmoil::net::{TcpListener, TcpStream};
use worker::agent::Network;

/// Where coordinators listen.
pub const PORT: u16 = 7070;

/// A connection as tonic's server takes it.
pub struct Connection(TcpStream);

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The connections that come to this host.
pub async fn listen() -> io::Result<ReceiverStream<io::Result<Connection>>> {
    let listener = TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, PORT)).await?;
    let (accepted, connections) = mpsc::channel(64);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                biased;
                () = accepted.closed() => return,
                next = listener.accept() => next,
            };
            let connection = next.map(|(stream, _)| Connection(stream));
            if accepted.send(connection).await.is_err() {
                return;
            }
        }
    });
    Ok(ReceiverStream::new(connections))
}

/// Connects to hosts by their names.
#[derive(Debug, Clone, Copy)]
pub struct SimNetwork;

#[derive(Debug, Clone, Copy)]
struct Connector;

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let host = uri.host().unwrap_or_default().to_owned();
        Box::pin(async move { Ok(TokioIo::new(TcpStream::connect((host.as_str(), PORT)).await?)) })
    }
}

impl Network for SimNetwork {
    async fn connect(&self, endpoint: Endpoint) -> Result<Channel, Error> {
        endpoint.connect_with_connector(Connector).await
    }
}

/// A user's client.
pub async fn jobs(url: &str) -> Result<JobsClient<Channel>, Error> {
    let endpoint = Endpoint::from_shared(url.to_owned())?;
    Ok(JobsClient::new(endpoint.connect_with_connector(Connector).await?))
}
