//! Starting trainers, and finding those that an earlier daemon started.

use super::{
    hold, log,
    memory::MemoryWatch,
    process::{self, Process},
    pulse,
    record::TrainerRecord,
    sharing, socket,
    trainer::{End, Handle, SupervisorEvent, Trainer},
};
use common::{
    daemon::allocator,
    ids::{Generation, JobId, Slot, WorkerId},
};
use rustix::fs::FlockOperation;
use std::{
    env,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tokio::{net::UnixListener, sync::mpsc};

/// Names the trainer's program in place of the one beside the worker's.
const PROGRAM_VARIABLE: &str = "LLM2CLIP_TRAINER";

/// What all trainers of a worker have in common.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The worker's own folder.
    pub state: PathBuf,
    /// The worker.
    pub worker: WorkerId,
    /// CPU threads a trainer.
    pub threads: u32,
    /// Under which name or address trainers of other machines reach this one.
    pub peer_host: String,
    /// How long a trainer goes on without this daemon.
    pub lease: Duration,
    /// How many trainers of this machine compute on one GPU; 0 when it has none.
    pub ranks_per_gpu: u32,
}

/// What a trainer is started for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Its place.
    pub slot: Slot,
    /// Whom it works for.
    pub job: JobId,
    /// Its first membership.
    pub generation: Generation,
    /// The job's folder.
    pub output: PathBuf,
}

/// Why a trainer could not be started or found.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The worker's folder.
    #[error("cannot use {path} for the worker's state: {source}; choose another folder with --state")]
    State {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another daemon has the folder.
    #[error("{0} is the state of a worker that runs already; give each worker of a machine its own --id and --state")]
    InUse(PathBuf),
    /// The job's folder.
    #[error("cannot write the log {path}: {source}; the job's output must be writable on every worker")]
    Log {
        /// Which log.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The program.
    #[error("cannot start {program}: {source}; it belongs beside llm2clip-worker, or ${PROGRAM_VARIABLE} names it")]
    Spawn {
        /// Which program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A trainer of an earlier daemon.
#[derive(Debug)]
pub struct Found<H = Handle> {
    /// What is known of it.
    pub record: TrainerRecord,
    /// The way to it, or its end if it is gone.
    pub now: Result<H, End>,
}

/// Starts trainers.
#[derive(Debug)]
pub struct Supervisor {
    settings: Settings,
    program: PathBuf,
    /// What holds it: this daemon's own program.
    holder: PathBuf,
    folder: PathBuf,
    events: mpsc::Sender<SupervisorEvent>,
    /// Held as long as this daemon uses the folder.
    _lock: File,
}

impl Supervisor {
    /// Takes the worker's folder for itself. What happens to trainers is told over `events`.
    ///
    /// # Errors
    /// When the folder cannot be used or another daemon uses it.
    pub fn open(settings: Settings, events: mpsc::Sender<SupervisorEvent>) -> Result<Self, SupervisorError> {
        let folder = settings.state.join("trainers");
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| SupervisorError::State { path, source }
        };
        fs::create_dir_all(&folder).map_err(failed(&folder))?;
        let path = settings.state.join("lock");
        let lock = File::create(&path).map_err(failed(&path))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(SupervisorError::InUse(settings.state)),
            Err(error) => return Err(failed(&path)(error.into())),
        }
        let program = program().map_err(failed(&folder))?;
        let holder = env::current_exe().map_err(failed(&folder))?;
        Ok(Self { settings, program, holder, folder, events, _lock: lock })
    }

    /// Starts a trainer.
    ///
    /// # Errors
    /// When its socket, its log or its process cannot be made.
    pub fn start(&self, assignment: &Assignment) -> Result<Handle, SupervisorError> {
        let Assignment { slot, job, generation, output } = assignment;
        let socket = self.folder.join(format!("{slot}.sock"));
        let listener = self.listen(&socket)?;
        let log = log::path(output, &self.settings.worker, *slot, *generation);
        let pulse = pulse::path(&self.settings.state, slot.0);
        pulse::create(&pulse).map_err(|source| SupervisorError::State { path: pulse.clone(), source })?;
        let file = log::open(&log).map_err(|source| SupervisorError::Log { path: log.clone(), source })?;
        let command = self.command(assignment, &socket, &pulse);
        let spawn_error = |source| SupervisorError::Spawn { program: self.program.clone(), source };
        let process = Process::spawn_held(&self.holder, self.end(*slot), &command, file).map_err(spawn_error)?;
        let record = TrainerRecord {
            schema: 1,
            slot: *slot,
            pid: process.id(),
            // A process that is gone already has no start; its record is never matched.
            started_ticks: process::started(process.id()).unwrap_or(0),
            job: job.clone(),
            generation: *generation,
            peer: None,
            socket,
            log,
        };
        if let Err(error) = record.write(&self.folder) {
            tracing::error!(%slot, %error, "could not write a trainer's record: a restarted worker will not know it");
        }
        tracing::info!(%slot, %job, generation = generation.0, pid = record.pid, "started a trainer");
        let files = (self.folder.clone(), pulse);
        Ok(Trainer::watch(process, listener, record, files, self.events.clone()))
    }

    /// Takes up the trainers of the daemon before this one.
    ///
    /// # Errors
    /// When the worker's folder cannot be read.
    pub fn adopt(&self) -> Result<Vec<Found>, SupervisorError> {
        let records = TrainerRecord::read_all(&self.folder)
            .map_err(|source| SupervisorError::State { path: self.folder.clone(), source })?;
        records.into_iter().map(|record| self.adopt_one(record)).collect()
    }

    fn adopt_one(&self, record: TrainerRecord) -> Result<Found, SupervisorError> {
        let process = Process::adopt(record.pid, record.started_ticks, Some(self.end(record.slot)))
            .map_err(|source| SupervisorError::State { path: record.socket.clone(), source })?;
        let (slot, pid) = (record.slot, record.pid);
        let now = match process {
            Some(process) => {
                tracing::info!(%slot, job = %record.job, pid, "took up a living trainer");
                let listener = self.listen(&record.socket)?;
                let files = (self.folder.clone(), pulse::path(&self.settings.state, slot.0));
                Ok(Trainer::watch(process, listener, record.clone(), files, self.events.clone()))
            }
            None => {
                TrainerRecord::remove(&self.folder, slot);
                let _ = fs::remove_file(pulse::path(&self.settings.state, slot.0));
                let last_lines = log::last_lines(&record.log);
                // Its holder may be about to write how it ended.
                let exit = process::ended_before(&self.end(slot), pid);
                let memory = MemoryWatch::default().at_end(exit, false, &last_lines);
                Err(End { slot, pid, exit, last_lines, memory, stacks: None })
            }
        };
        Ok(Found { record, now })
    }

    fn listen(&self, path: &Path) -> Result<UnixListener, SupervisorError> {
        let listen = || {
            let listener = socket::listen(path)?;
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        };
        listen().map_err(|source| SupervisorError::State { path: path.to_owned(), source })
    }

    /// Where it is written how the trainer of a place ended.
    fn end(&self, slot: Slot) -> PathBuf {
        hold::path(&self.folder, slot.0)
    }

    fn command(&self, assignment: &Assignment, socket: &Path, pulse: &Path) -> Command {
        let Assignment { slot, generation, .. } = assignment;
        let mut command = Command::new(&self.program);
        command.arg("run").arg("--socket").arg(socket);
        command.args(["--threads", &self.settings.threads.to_string(), "--slot", &slot.to_string()]);
        command.args(["--peer-host", &self.settings.peer_host, "--generation", &generation.0.to_string()]);
        command.args(["--lease-s", &self.settings.lease.as_secs().to_string()]).arg("--pulse").arg(pulse);
        command.envs(allocator::environment());
        command.env("OMP_NUM_THREADS", self.settings.threads.to_string());
        let worker = self.settings.worker.to_string();
        let place = sharing::Place { worker: &worker, slot: slot.0, ranks_per_gpu: self.settings.ranks_per_gpu };
        // A variable of the user's own wins.
        let shared = sharing::environment(place, None).into_iter().filter(|(name, _)| env::var_os(name).is_none());
        command.envs(shared);
        command
    }
}

/// The trainer's program.
fn program() -> io::Result<PathBuf> {
    match env::var_os(PROGRAM_VARIABLE) {
        Some(program) => Ok(program.into()),
        None => Ok(env::current_exe()?.with_file_name("llm2clip-trainer")),
    }
}
