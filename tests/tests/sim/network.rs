//! tonic over the simulated network.

use hyper_util::rt::TokioIo;
use proto::v1::jobs_client::JobsClient;
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
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

/// The connections of one process, which are closed in the order in which they were made. When a process is killed, tokio drops
/// its tasks in an order that depends on how many tasks all runtimes of this program have had: peers would hear of the closings
/// in another order when simulations run side by side, and a seed would not be one history.
#[derive(Debug, Clone)]
pub struct Connections {
    made: Arc<AtomicU64>,
    over: UnboundedSender<(u64, TcpStream)>,
}

/// Closes what is over, for as long as its process lives and at its end.
struct Closer(UnboundedReceiver<(u64, TcpStream)>);

impl Connections {
    /// Called within the process, which it ends with.
    pub fn new() -> Self {
        let (over, closing) = mpsc::unbounded_channel();
        let mut closer = Closer(closing);
        tokio::task::spawn_local(async move { while closer.0.recv().await.is_some() {} });
        Self { made: Arc::default(), over }
    }

    fn add(&self, stream: TcpStream) -> Connection {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        Connection { number, stream: Some(stream), over: self.over.clone() }
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.close();
        let mut left: Vec<(u64, TcpStream)> = std::iter::from_fn(|| self.0.try_recv().ok()).collect();
        left.sort_by_key(|(number, _)| *number);
        left.into_iter().for_each(drop);
    }
}

/// A connection as tonic takes it.
pub struct Connection {
    number: u64,
    /// Absent only in its `drop`.
    stream: Option<TcpStream>,
    over: UnboundedSender<(u64, TcpStream)>,
}

impl Connection {
    fn stream(&mut self) -> Pin<&mut TcpStream> {
        Pin::new(self.stream.as_mut().expect("it is taken by drop alone"))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            // Without a closer the process is over, and the stream is closed by the error's end.
            drop(self.over.send((self.number, stream)));
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}

/// The connections that come to this host.
pub async fn listen(here: &Connections) -> io::Result<ReceiverStream<io::Result<Connection>>> {
    let listener = TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, PORT)).await?;
    let (accepted, connections) = mpsc::channel(64);
    let here = here.clone();
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                biased;
                () = accepted.closed() => return,
                next = listener.accept() => next,
            };
            let connection = next.map(|(stream, _)| here.add(stream));
            if accepted.send(connection).await.is_err() {
                return;
            }
        }
    });
    Ok(ReceiverStream::new(connections))
}

/// Connects to hosts by their names.
#[derive(Debug, Clone)]
pub struct SimNetwork(pub Connections);

impl Service<Uri> for SimNetwork {
    type Response = TokioIo<Connection>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (host, here) = (uri.host().unwrap_or_default().to_owned(), self.0.clone());
        Box::pin(async move { Ok(TokioIo::new(here.add(TcpStream::connect((host.as_str(), PORT)).await?))) })
    }
}

impl Network for SimNetwork {
    async fn connect(&self, endpoint: Endpoint) -> Result<Channel, Error> {
        endpoint.connect_with_connector(self.clone()).await
    }
}

/// A user's client.
pub async fn jobs(url: &str, here: &Connections) -> Result<JobsClient<Channel>, Error> {
    let endpoint = Endpoint::from_shared(url.to_owned())?;
    Ok(JobsClient::new(SimNetwork(here.clone()).connect(endpoint).await?))
}
