//! `serve`: the coordinator of a cluster.

use super::{error::CliError, local::Coordinator};
use common::daemon::{shutdown::signalled, telemetry};
use std::{net::SocketAddr, path::PathBuf};

#[derive(Debug, clap::Args)]
pub(super) struct ServeArgs {
    /// Where to listen; port 0 takes a free one. Everyone who reaches it may run jobs: keep it to a trusted network
    #[arg(long, default_value = "127.0.0.1:7070", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where to keep what must survive a restart
    #[arg(long, default_value = "llm2clip-state", value_name = "FOLDER")]
    state: PathBuf,
    /// Log as JSON lines
    #[arg(long)]
    log_json: bool,
}

pub(super) async fn serve(args: &ServeArgs) -> Result<u8, CliError> {
    telemetry::init(args.log_json);
    if !args.listen.ip().is_loopback() {
        tracing::warn!(listen = %args.listen, "listens beyond this machine without TLS: anyone who reaches it may run jobs");
    }
    let coordinator = Coordinator::open_at(&args.state, args.listen).await?;
    tracing::info!(url = coordinator.url(), state = %args.state.display(), "the coordinator is up");
    let signal = signalled().await.map_err(|error| CliError::new(1, format!("signals cannot be caught: {error}")))?;
    tracing::info!(signal, "ends; trainers go on");
    coordinator.stop().await;
    Ok(0)
}
