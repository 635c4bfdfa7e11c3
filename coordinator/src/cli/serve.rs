//! `serve`: the coordinator of a cluster, alone or one of several.

use super::{error::CliError, local::Coordinator};
use crate::{
    api,
    election::{Elector, Identity, Timing},
    runtime::{Quarantine, RuntimeConfig},
    store::{EtcdAddress, EtcdStore, EtcdTls, Faulty},
};
use common::daemon::{
    shutdown::{Shutdown, signalled},
    telemetry,
};
use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};
use tokio::net::TcpListener;

/// How long workers have to find a new leader before what runs on them counts as lost.
const RETURN: Duration = Duration::from_secs(20);
/// How long the end may take.
const END: Duration = Duration::from_secs(8);

#[derive(Debug, clap::Args)]
pub(super) struct ServeArgs {
    /// Where to listen; port 0 takes a free one. Everyone who reaches it may run jobs: keep it to a trusted network
    #[arg(long, default_value = "127.0.0.1:7070", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where to keep what must survive a restart
    #[arg(long, default_value = "llm2clip-state", value_name = "FOLDER")]
    state: PathBuf,
    #[command(flatten)]
    shared: SharedArgs,
    /// A worker gets no new trainers after so many of its trainers were lost within ten minutes, for half an hour or until
    /// `undrain`; 0 means never
    #[arg(long, default_value_t = Quarantine::default().after, value_name = "N")]
    quarantine_after: u32,
    /// Log as JSON lines
    #[arg(long)]
    log_json: bool,
}

/// For several coordinators over one store.
#[derive(Debug, clap::Args)]
struct SharedArgs {
    /// Keep it in etcd instead (etcd://HOST:PORT,HOST:PORT/PREFIX): of several coordinators over one, one leads and the
    /// others stand by
    #[arg(long, env = "LLM2CLIP_STORE", value_name = "ADDRESS")]
    store: Option<String>,
    /// Where workers and users reach this coordinator; the address it listens on unless given
    #[arg(long, requires = "store", value_name = "URL")]
    advertise: Option<String>,
    /// Seconds after which another coordinator leads when the leader is gone
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(3..=600), value_name = "SECONDS")]
    leader_lease_s: u64,
    /// User of etcd
    #[arg(long, requires_all = ["store", "etcd_password_file"], value_name = "NAME")]
    etcd_user: Option<String>,
    /// File with the user's password
    #[arg(long, requires = "etcd_user", value_name = "FILE")]
    etcd_password_file: Option<PathBuf>,
    /// PEM file of who signs etcd's certificates; TLS is off without it
    #[arg(long, requires = "store", value_name = "FILE")]
    etcd_ca: Option<PathBuf>,
    /// PEM file of our certificate, for an etcd that asks for one
    #[arg(long, requires_all = ["etcd_ca", "etcd_key"], value_name = "FILE")]
    etcd_cert: Option<PathBuf>,
    /// PEM file of its key
    #[arg(long, requires = "etcd_cert", value_name = "FILE")]
    etcd_key: Option<PathBuf>,
}

impl ServeArgs {
    fn quarantine(&self) -> Option<Quarantine> {
        (self.quarantine_after > 0).then_some(Quarantine { after: self.quarantine_after, ..Quarantine::default() })
    }
}

impl SharedArgs {
    fn address(&self, store: &str) -> Result<EtcdAddress, CliError> {
        let mut address = EtcdAddress::parse(store).map_err(CliError::usage)?;
        if let (Some(user), Some(path)) = (&self.etcd_user, &self.etcd_password_file) {
            let password = fs::read_to_string(path)
                .map_err(|error| CliError::usage(format!("could not read {}: {error}", path.display())))?;
            address = address.with_user(user.clone(), password.trim_end_matches(['\r', '\n']).to_owned());
        }
        if let Some(ca) = &self.etcd_ca {
            let identity = self.etcd_cert.clone().zip(self.etcd_key.clone());
            address = address.with_tls(EtcdTls { ca: ca.clone(), identity });
        }
        Ok(address)
    }
}

pub(super) async fn serve(args: &ServeArgs) -> Result<u8, CliError> {
    telemetry::init(args.log_json);
    if !args.listen.ip().is_loopback() {
        tracing::warn!(listen = %args.listen, "listens beyond this machine without TLS: anyone who reaches it may run jobs");
    }
    if let Some(store) = &args.shared.store {
        return serve_shared(args, store).await;
    }
    let runtime = RuntimeConfig { quarantine: args.quarantine(), ..RuntimeConfig::default() };
    let mut coordinator = Coordinator::open_at(&args.state, args.listen, runtime).await?;
    tracing::info!(url = coordinator.url(), state = %args.state.display(), "the coordinator is up");
    let ended = tokio::select! {
        waited = wait() => waited.map(|()| 0),
        error = coordinator.failed() => Err(CliError::new(
            1,
            format!("the coordinator ended: {error}. Trainers go on; start it again when that is mended"),
        )),
    };
    coordinator.stop().await;
    ended
}

/// One of several: stands by at once, and leads when it is its turn.
async fn serve_shared(args: &ServeArgs, store: &str) -> Result<u8, CliError> {
    let store = EtcdStore::new(&args.shared.address(store)?).map_err(CliError::usage)?;
    let listener = TcpListener::bind(args.listen)
        .await
        .map_err(|error| CliError::new(1, format!("cannot listen on {}: {error}", args.listen)))?;
    let bound =
        listener.local_addr().map_err(|error| CliError::new(1, format!("the listener has no address: {error}")))?;
    let url = match &args.shared.advertise {
        Some(url) => url.clone(),
        None if bound.ip().is_unspecified() => {
            return Err(CliError::usage(format!(
                "{bound} is no address that others can reach: give --advertise http://THIS-MACHINE:{}",
                bound.port()
            )));
        }
        None => format!("http://{bound}"),
    };
    let shutdown = Shutdown::new();
    let timing = Timing { ttl: Duration::from_secs(args.shared.leader_lease_s) };
    let runtime = RuntimeConfig { return_within: RETURN, quarantine: args.quarantine(), ..RuntimeConfig::default() };
    let etcd = store.endpoints();
    let store = Faulty::from_environment(store).map_err(CliError::usage)?;
    let (elector, seats) = Elector::new(store, Identity { url: url.clone(), timing, runtime });
    let electing = elector.run(shutdown.token());
    shutdown.spawn(electing);
    let serving = api::serve(listener, seats, shutdown.clone());
    shutdown.spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "the API ended");
        }
    });
    tracing::info!(url, etcd, "the coordinator is up");
    wait().await?;
    if !shutdown.finish(END).await {
        tracing::warn!("not everything ended in time");
    }
    Ok(0)
}

async fn wait() -> Result<(), CliError> {
    let signal = signalled().await.map_err(|error| CliError::new(1, format!("signals cannot be caught: {error}")))?;
    tracing::info!(signal, "ends; trainers go on");
    Ok(())
}
