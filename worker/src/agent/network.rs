//! How an agent reaches a coordinator. The seam where a simulation puts its own network.

use std::future::Future;
use tonic::transport::{Channel, Endpoint, Error};

/// Opens connections.
pub trait Network: Send + Sync + 'static {
    /// Connects to an endpoint, with all that it says of deadlines and of keeping alive.
    fn connect(&self, endpoint: Endpoint) -> impl Future<Output = Result<Channel, Error>> + Send;
}

/// The network of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tcp;

impl Network for Tcp {
    async fn connect(&self, endpoint: Endpoint) -> Result<Channel, Error> {
        endpoint.connect().await
    }
}
