//! A coordinator in this process, and workers on this machine.

use super::{error::CliError, locate};
use crate::programs::program;
use crate::{
    api,
    election::Seats,
    runtime::{Handle, Runtime, RuntimeConfig, RuntimeError},
    store::{Faulty, RedbStore},
};
use common::{daemon::shutdown::Shutdown, ids::JobId};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, OpenOptions},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    sync::oneshot,
};

/// How long trainers go on without their worker: under `run` nobody takes them up again.
const TRAINER_LEASE_S: u32 = 5;
/// How long a worker has to end its trainers and itself.
const WORKER_GRACE: Duration = Duration::from_secs(20);
/// How often a worker that died is started again.
const RESTARTS: u32 = 5;

/// A coordinator in this process.
pub(super) struct Coordinator {
    url: String,
    state: PathBuf,
    handle: Handle,
    shutdown: Shutdown,
    /// Why its loop ended by itself; nothing while it goes on.
    failure: oneshot::Receiver<RuntimeError>,
}

impl Coordinator {
    /// Opens a state folder and serves on a free port of the loopback interface.
    pub(super) async fn open(state: &Path) -> Result<Self, CliError> {
        Self::open_at(state, SocketAddr::from(([127, 0, 0, 1], 0)), RuntimeConfig::default()).await
    }

    /// Opens a state folder and serves on an address.
    pub(super) async fn open_at(state: &Path, listen: SocketAddr, config: RuntimeConfig) -> Result<Self, CliError> {
        let fail = |what: &str, error: &dyn std::fmt::Display| CliError::new(1, format!("{what}: {error}"));
        fs::create_dir_all(state).map_err(|error| fail(&format!("could not create {}", state.display()), &error))?;
        let state = fs::canonicalize(state).map_err(|error| fail(&state.display().to_string(), &error))?;
        let store = RedbStore::open(&state).map_err(|error| CliError::new(1, error))?;
        let store = Faulty::from_environment(store).map_err(CliError::usage)?;
        let listener =
            TcpListener::bind(listen).await.map_err(|error| fail(&format!("cannot listen on {listen}"), &error))?;
        let address = listener.local_addr().map_err(|error| fail("the listener has no address", &error))?;
        let shutdown = Shutdown::new();
        let (handle, runtime) = Runtime::open(store, config).await.map_err(|error| CliError::new(1, error))?;
        let token = shutdown.token();
        let (ended, failure) = oneshot::channel();
        shutdown.spawn(async move {
            if let Err(error) = runtime.run(token).await {
                tracing::error!(%error, "the coordinator ended");
                // Nobody waits for it in `run`, whose own requests are told.
                let _ = ended.send(error);
            }
        });
        let serving = api::serve(listener, Seats::always(handle.clone()), shutdown.clone());
        shutdown.spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the API ended");
            }
        });
        let url = format!("http://{address}");
        locate::publish(&state, &url)?;
        Ok(Self { url, state, handle, shutdown, failure })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Waits until its loop ends by an error: of its store, as a rule. A process that goes on without it answers nothing, so
    /// it has to end, for whoever looks after it to start it again.
    pub(super) async fn failed(&mut self) -> RuntimeError {
        match (&mut self.failure).await {
            Ok(error) => error,
            Err(_) => std::future::pending().await,
        }
    }

    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    /// Says that all trainers of a job are dead.
    pub(super) async fn abandon(&self, job: &str) -> Result<(), CliError> {
        let job: JobId = job.parse().map_err(CliError::usage)?;
        self.handle.abandon(&job).await.map_err(|error| CliError::new(1, error))?;
        Ok(())
    }

    /// Ends it in an orderly way.
    pub(super) async fn stop(self) {
        locate::withdraw(&self.state);
        self.shutdown.finish(Duration::from_secs(5)).await;
    }
}

/// How many workers with how many trainers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settings {
    workers: u32,
    trainers_per_worker: u32,
    cores: u32,
}

/// What a worker of several on this machine is told about its GPUs.
#[derive(Debug, PartialEq, Eq)]
struct GpuShare {
    /// As CUDA names them.
    visible: Vec<String>,
    /// How many trainers of all workers compute on one.
    ranks_per_gpu: u32,
}

impl Settings {
    pub(super) fn new(workers: u32, trainers: Option<u32>, cores: Option<u32>) -> Result<Self, CliError> {
        let machine =
            std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX));
        let trainers_per_worker = trainers.unwrap_or_else(|| (gpus() / workers.max(1)).max(1));
        let settings = Self { workers, trainers_per_worker, cores: cores.unwrap_or(machine) };
        for (name, value) in
            [("--workers", workers), ("--trainers-per-worker", trainers_per_worker), ("--cores", settings.cores)]
        {
            if value == 0 {
                return Err(CliError::usage(format!("{name} must be 1 or more")));
            }
        }
        Ok(settings)
    }

    pub(super) fn with_workers(self, workers: Option<u32>) -> Result<Self, CliError> {
        Self::new(workers.unwrap_or(self.workers), Some(self.trainers_per_worker), Some(self.cores))
    }

    /// How many ranks that is.
    pub(super) fn world(&self) -> u32 {
        self.workers.saturating_mul(self.trainers_per_worker)
    }

    /// Which of the GPUs are a worker's, when there are any: the workers' trainers take them in turn.
    fn gpus_of(&self, worker: u32, gpus: &[String]) -> Option<GpuShare> {
        let count = u32::try_from(gpus.len()).ok().filter(|count| *count > 0)?;
        let first = u64::from(worker) * u64::from(self.trainers_per_worker);
        let own = (first..first + u64::from(self.trainers_per_worker.min(count)))
            .map(|at| gpus[(at % u64::from(count)) as usize].clone());
        Some(GpuShare { visible: own.collect(), ranks_per_gpu: self.world().div_ceil(count) })
    }

    pub(super) fn save(&self, state: &Path) -> Result<(), CliError> {
        let path = state.join("run.json");
        let text = serde_json::to_vec(self).expect("settings are JSON");
        fs::write(&path, text).map_err(|error| CliError::new(1, format!("could not write {}: {error}", path.display())))
    }

    pub(super) fn load(state: &Path) -> Result<Self, CliError> {
        let path = state.join("run.json");
        let text =
            fs::read(&path).map_err(|error| CliError::new(1, format!("could not read {}: {error}", path.display())))?;
        serde_json::from_slice(&text).map_err(|error| CliError::new(1, format!("{}: {error}", path.display())))
    }
}

fn gpus() -> u32 {
    u32::try_from(visible_gpus().len()).unwrap_or(u32::MAX)
}

/// This machine's GPUs that the user lets programs see, as CUDA names them.
fn visible_gpus() -> Vec<String> {
    let count = fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, Iterator::count);
    match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(list) if count > 0 => {
            list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
        }
        _ => (0..count).map(|number| number.to_string()).collect(),
    }
}

/// Worker daemons that end with this process.
pub(super) struct Workers {
    running: Vec<Running>,
    left: u32,
}

struct Running {
    name: String,
    log: PathBuf,
    command: Command,
    child: Child,
}

impl Workers {
    pub(super) fn start(coordinator: &Coordinator, settings: &Settings, logs: &Path) -> Result<Self, CliError> {
        Self::start_with(coordinator, settings, logs, &[])
    }

    /// The same with more in the daemons' environment, and so in their trainers'.
    pub(super) fn start_with(
        coordinator: &Coordinator,
        settings: &Settings,
        logs: &Path,
        environment: &[(&str, String)],
    ) -> Result<Self, CliError> {
        fs::create_dir_all(logs)
            .map_err(|error| CliError::new(1, format!("could not create {}: {error}", logs.display())))?;
        let started = |number| Running::start(coordinator, settings, logs, (number, environment));
        let running = (0..settings.workers).map(started);
        Ok(Self { running: running.collect::<Result<_, _>>()?, left: RESTARTS })
    }

    /// Returns when a worker died, with what to say; it was started again.
    pub(super) async fn watch(&mut self) -> Result<String, CliError> {
        let (status, at) = {
            let waits = self.running.iter_mut().map(|running| Box::pin(running.child.wait()));
            first(waits.collect()).await
        };
        let running = &mut self.running[at];
        let ended = ended(status);
        if self.left == 0 {
            let log = running.log.display();
            return Err(CliError::new(1, format!("worker {} {ended} again and again; its log: {log}", running.name)));
        }
        self.left -= 1;
        running.child =
            running.command.spawn().map_err(|error| CliError::new(1, format!("worker {}: {error}", running.name)))?;
        Ok(format!("worker {} {ended}; started it again", running.name))
    }

    /// Asks all to end, waits, and kills what is left.
    pub(super) async fn end(mut self) {
        for running in &mut self.running {
            if let Some(pid) = running.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
                // It may be gone already.
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        for running in &mut self.running {
            if tokio::time::timeout(WORKER_GRACE, running.child.wait()).await.is_err() {
                let _ = running.child.kill().await;
            }
        }
    }
}

fn ended(status: std::io::Result<ExitStatus>) -> String {
    status.map_or_else(|error| format!("was lost ({error})"), |status| format!("ended ({status})"))
}

/// The first of several to end, and which it was. Waits for ever when there is none.
async fn first<F>(mut waits: Vec<std::pin::Pin<Box<F>>>) -> (std::io::Result<ExitStatus>, usize)
where
    F: Future<Output = std::io::Result<ExitStatus>>,
{
    std::future::poll_fn(|context| {
        for (at, wait) in waits.iter_mut().enumerate() {
            if let std::task::Poll::Ready(status) = wait.as_mut().poll(context) {
                return std::task::Poll::Ready((status, at));
            }
        }
        std::task::Poll::Pending
    })
    .await
}

impl Running {
    fn start(
        coordinator: &Coordinator,
        settings: &Settings,
        logs: &Path,
        (number, environment): (u32, &[(&str, String)]),
    ) -> Result<Self, CliError> {
        let name = format!("local-{number}");
        let log = logs.join(format!("worker-{name}.log"));
        let fail = |what: &str, error: std::io::Error| CliError::new(1, format!("{what}: {error}"));
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(|error| fail(&log.display().to_string(), error))?;
        let errors = file.try_clone().map_err(|error| fail(&log.display().to_string(), error))?;
        let path = program("llm2clip-worker");
        let mut command = Command::new(&path);
        let cores = (settings.cores / settings.workers).max(1);
        command
            .args(["--coordinator", coordinator.url(), "--id", &name, "--with-parent"])
            .args(["--trainers", &settings.trainers_per_worker.to_string(), "--cores", &cores.to_string()])
            .args(["--lease-s", &TRAINER_LEASE_S.to_string()])
            .arg("--state")
            .arg(coordinator.state().join(format!("worker-{number}")))
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            // Ctrl-C is for this process, which then asks the workers to end.
            .process_group(0)
            .envs(environment.iter().map(|(name, value)| (name, value)));
        if let Some(share) = settings.gpus_of(number, &visible_gpus()) {
            command.env("CUDA_VISIBLE_DEVICES", share.visible.join(","));
            command.args(["--ranks-per-gpu", &share.ranks_per_gpu.to_string()]);
        }
        let child = command.spawn().map_err(|error| {
            fail(&format!("{} cannot be started (it belongs beside `llm2clip`)", path.display()), error)
        })?;
        Ok(Self { name, log, command, child })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_take_the_gpus_in_turn() {
        let check = |workers, trainers, gpus: &[&str], expected: &[(&[&str], u32)]| {
            let settings = Settings::new(workers, Some(trainers), Some(1)).unwrap();
            let gpus: Vec<String> = gpus.iter().map(ToString::to_string).collect();
            let share = |worker| settings.gpus_of(worker, &gpus).map(|share| (share.visible, share.ranks_per_gpu));
            let found: Vec<_> = (0..workers).filter_map(share).collect();
            let own = |(visible, ranks): &(&[&str], u32)| (visible.iter().map(ToString::to_string).collect(), *ranks);
            assert_eq!(found, expected.iter().map(own).collect::<Vec<(Vec<String>, u32)>>());
        };
        check(2, 2, &["0", "1", "2", "3"], &[(&["0", "1"], 1), (&["2", "3"], 1)]);
        check(2, 1, &["5"], &[(&["5"], 2), (&["5"], 2)]);
        check(1, 3, &["0", "1"], &[(&["0", "1"], 2)]);
        check(2, 1, &[], &[]);
    }
}
