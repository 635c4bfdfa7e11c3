//! `serve`: the coordinator of a cluster, alone or one of several.

mod options;

pub(super) use self::options::ServeArgs;
use self::options::{Config, Place, Shared};
use super::{error::CliError, local::Coordinator};
use crate::{
    api,
    election::{Elector, Identity, Seat, Seats},
    runtime::RuntimeConfig,
    store::{EtcdStore, Faulty},
};
use common::daemon::{
    notify::Manager,
    shutdown::{Shutdown, signalled},
    telemetry,
};
use std::{net::SocketAddr, time::Duration};
use tokio::net::TcpListener;

/// How long workers have to find a new leader before what runs on them counts as lost.
const RETURN: Duration = Duration::from_secs(20);
/// How long the end may take.
const END: Duration = Duration::from_secs(8);

pub(super) async fn serve(args: &ServeArgs) -> Result<u8, CliError> {
    let config = args.config()?;
    telemetry::init(config.log_json);
    let listen = config.listen;
    if !listen.ip().is_loopback() {
        tracing::warn!(%listen, "listens beyond this machine without TLS: anyone who reaches it may run jobs");
    }
    let Config { place, quarantine, .. } = config;
    let runtime = RuntimeConfig { quarantine, manager: Manager::of_environment(), ..RuntimeConfig::default() };
    let state = match place {
        Place::Etcd(shared) => {
            return serve_shared(listen, *shared, RuntimeConfig { return_within: RETURN, ..runtime }).await;
        }
        Place::Folder(state) => state,
    };
    let manager = runtime.manager.clone();
    let mut coordinator = Coordinator::open_at(&state, listen, runtime).await?;
    let url = coordinator.url();
    tracing::info!(url, state = %state.display(), "the coordinator is up");
    manager.ready(&format!("leads at {url}, the only coordinator"));
    let ended = tokio::select! {
        waited = wait(&manager) => waited.map(|()| 0),
        error = coordinator.failed() => Err(CliError::new(
            1,
            format!("the coordinator ended: {error}. Trainers go on; start it again when that is mended"),
        )),
    };
    coordinator.stop().await;
    ended
}

/// One of several: stands by at once, and leads when it is its turn.
async fn serve_shared(listen: SocketAddr, shared: Shared, runtime: RuntimeConfig) -> Result<u8, CliError> {
    let store = EtcdStore::new(&shared.store).map_err(CliError::usage)?;
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|error| CliError::new(1, format!("cannot listen on {listen}: {error}")))?;
    let bound =
        listener.local_addr().map_err(|error| CliError::new(1, format!("the listener has no address: {error}")))?;
    let url = match &shared.advertise {
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
    let (etcd, manager) = (store.endpoints(), runtime.manager.clone());
    let store = Faulty::from_environment(store).map_err(CliError::usage)?;
    let (elector, seats) = Elector::new(store, Identity { url: url.clone(), timing: shared.timing, runtime });
    let electing = elector.run(shutdown.token());
    shutdown.spawn(electing);
    let serving = api::serve(listener, seats.clone(), shutdown.clone());
    shutdown.spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "the API ended");
        }
    });
    tracing::info!(url, etcd, "the coordinator is up");
    // One that stands by is ready: it says who leads.
    manager.ready(&standing(&seats.seat()));
    shutdown.spawn(shutdown.token().run_until_cancelled_owned(tell(manager.clone(), seats)));
    wait(&manager).await?;
    if !shutdown.finish(END).await {
        tracing::warn!("not everything ended in time");
    }
    Ok(0)
}

/// Has the service manager show who leads, whenever that changes.
async fn tell(manager: Manager, mut seats: Seats) {
    let mut told = standing(&seats.seat());
    while let Some(seat) = seats.changed().await {
        let now = standing(&seat);
        if now != told {
            manager.status(&now);
            told = now;
        }
    }
}

/// Where this coordinator sits, in words.
fn standing(seat: &Seat) -> String {
    match seat {
        Seat::Leading(office) => match office.term {
            Some(term) => format!("leads in term {term}"),
            None => "leads".to_owned(),
        },
        Seat::Standby { leader: Some(leader) } => format!("stands by, {leader} leads"),
        Seat::Standby { leader: None } => "stands by, no leader is known".to_owned(),
    }
}

async fn wait(manager: &Manager) -> Result<(), CliError> {
    let signal = signalled().await.map_err(|error| CliError::new(1, format!("signals cannot be caught: {error}")))?;
    tracing::info!(signal, "ends; trainers go on");
    manager.stopping();
    Ok(())
}
