//! How a worker is set up: flags over a file over what the machine has.

use super::inventory::Machine;
use crate::supervisor::sharing;
use common::{
    ids::{InvalidName, WorkerId},
    recipe::RecipeError,
    settings::{self, Settings},
    status::Inventory,
};
use std::{env, io, path::PathBuf, time::Duration};

/// As written: on the command line, or under the same names, with `_` for `-`, in a TOML file.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct Options {
    /// The coordinator, such as http://10.0.0.1:7070; several with commas between when one of them leads
    #[arg(long, env = "LLM2CLIP_COORDINATOR", value_name = "URL[,URL]")]
    pub coordinator: Option<String>,
    /// What this worker is called; the machine's name unless given
    #[arg(long)]
    pub id: Option<String>,
    /// How many trainers run at a time; one a GPU, or one, unless given
    #[arg(long, value_name = "N")]
    pub trainers: Option<u32>,
    /// How many CPU cores the trainers share; all unless given
    #[arg(long, value_name = "N")]
    pub cores: Option<u32>,
    /// The worker's own folder on this machine [default: ~/.local/state/llm2clip/worker-ID]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Name or address of this machine under which trainers on other machines reach its trainers [default: 127.0.0.1]
    #[arg(long, value_name = "HOST")]
    pub peer_host: Option<String>,
    /// Seconds that a trainer goes on without this worker before it writes a checkpoint and ends [default: 30]
    #[arg(long, value_name = "SECONDS")]
    pub lease_s: Option<u64>,
    /// How many trainers of this machine share a GPU, those of its other workers too; follows from --trainers unless given
    #[arg(long, value_name = "N")]
    pub ranks_per_gpu: Option<u32>,
    /// SIGTERM means that this machine is taken away after so many seconds: trainers write a checkpoint and stop, and their
    /// jobs go on elsewhere. Without it trainers go on and wait for the next worker [minimum: 30]
    #[arg(long, value_name = "SECONDS")]
    pub preempt_grace_s: Option<u64>,
    /// Log JSON lines
    #[arg(long)]
    pub log_json: bool,
}

/// Validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The coordinator's address, or several with commas between.
    pub coordinator: String,
    /// What this worker is called.
    pub worker: WorkerId,
    /// What it tells of itself.
    pub inventory: Inventory,
    /// CPU threads a trainer.
    pub threads: u32,
    /// Its own folder.
    pub state: PathBuf,
    /// Where peers reach its trainers.
    pub peer_host: String,
    /// How long trainers go on without it.
    pub lease: Duration,
    /// How many trainers of this machine compute on one GPU; 0 when it has none.
    pub ranks_per_gpu: u32,
    /// How long after SIGTERM the machine is there; absent when it stays.
    pub preempt_grace: Option<Duration>,
}

/// What is wrong with a worker's settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file.
    #[error("cannot read {path}, the file of --config: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What is in the file.
    #[error(transparent)]
    Parse(#[from] RecipeError),
    /// Nothing says where the coordinator is.
    #[error("no coordinator: give --coordinator http://HOST:7070, or `coordinator` in the --config file")]
    NoCoordinator,
    /// A name that cannot be one.
    #[error("{0}; choose a name with --id")]
    Name(#[from] InvalidName),
    /// A number that must not be 0.
    #[error("{0} must be 1 or more")]
    Zero(&'static str),
    /// Too short for a checkpoint.
    #[error(
        "--preempt-grace-s is {0}: within less than 30 s nothing could be saved; leave it out, and trainers are left running"
    )]
    ShortGrace(u64),
    /// Nothing says where the worker may keep its state.
    #[error("no folder for the worker's state: give --state DIR, or set HOME")]
    NoState,
}

impl Options {
    /// Reads a file of options.
    ///
    /// # Errors
    /// When it cannot be read, or has a key that is none.
    pub fn read(path: PathBuf) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Self::parse(&path.display().to_string(), &text)?),
            Err(source) => Err(ConfigError::Read { path, source }),
        }
    }

    fn parse(file: &str, text: &str) -> Result<Self, RecipeError> {
        settings::parse(file, text, |keys: &mut Settings<'_>| {
            Ok(Self {
                coordinator: keys.text("coordinator")?,
                id: keys.text("id")?,
                trainers: keys.number("trainers")?,
                cores: keys.number("cores")?,
                state: keys.path("state")?,
                peer_host: keys.text("peer_host")?,
                lease_s: keys.number("lease_s")?,
                ranks_per_gpu: keys.number("ranks_per_gpu")?,
                preempt_grace_s: keys.number("preempt_grace_s")?,
                log_json: keys.truth("log_json")?.unwrap_or(false),
            })
        })
    }

    /// These options, and where they say nothing, those of `file`.
    #[must_use]
    pub fn over(self, file: Options) -> Options {
        Options {
            coordinator: self.coordinator.or(file.coordinator),
            id: self.id.or(file.id),
            trainers: self.trainers.or(file.trainers),
            cores: self.cores.or(file.cores),
            state: self.state.or(file.state),
            peer_host: self.peer_host.or(file.peer_host),
            lease_s: self.lease_s.or(file.lease_s),
            ranks_per_gpu: self.ranks_per_gpu.or(file.ranks_per_gpu),
            preempt_grace_s: self.preempt_grace_s.or(file.preempt_grace_s),
            log_json: self.log_json || file.log_json,
        }
    }

    /// Fills in what the machine says and checks the whole. `home` is the folder that programs keep their state in.
    ///
    /// # Errors
    /// When something is missing or cannot be.
    pub fn resolve(self, machine: Machine, home: Option<PathBuf>) -> Result<Config, ConfigError> {
        let worker: WorkerId = self.id.unwrap_or_else(|| machine.host.clone()).parse()?;
        let gpus = u32::try_from(machine.gpus.len()).unwrap_or(u32::MAX);
        let trainers = positive("--trainers", self.trainers.unwrap_or(gpus.max(1)))?;
        let cores = positive("--cores", self.cores.unwrap_or(machine.cores))?;
        let default_state = || home.map(|home| home.join("llm2clip").join(format!("worker-{worker}")));
        let state = self.state.or_else(default_state).ok_or(ConfigError::NoState)?;
        let lease_s = self.lease_s.unwrap_or(30);
        let ranks_per_gpu = self.ranks_per_gpu.unwrap_or_else(|| sharing::ranks_per_gpu(trainers, machine.gpus.len()));
        Ok(Config {
            coordinator: self.coordinator.ok_or(ConfigError::NoCoordinator)?,
            inventory: Inventory {
                host: machine.host,
                trainers,
                gpus: machine.gpus,
                cores,
                memory_bytes: machine.memory_bytes,
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            threads: (cores / trainers).max(1),
            state: std::path::absolute(&state).unwrap_or(state),
            peer_host: self.peer_host.unwrap_or_else(|| "127.0.0.1".to_owned()),
            lease: if lease_s == 0 { return Err(ConfigError::Zero("--lease-s")) } else { Duration::from_secs(lease_s) },
            ranks_per_gpu,
            preempt_grace: match self.preempt_grace_s {
                Some(seconds) if seconds < 30 => return Err(ConfigError::ShortGrace(seconds)),
                seconds => seconds.map(Duration::from_secs),
            },
            worker,
        })
    }
}

fn positive(name: &'static str, value: u32) -> Result<u32, ConfigError> {
    if value == 0 { Err(ConfigError::Zero(name)) } else { Ok(value) }
}

/// The folder that programs keep their state in.
pub fn state_home() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(gpus: usize) -> Machine {
        Machine { host: "box".into(), gpus: vec!["H100".into(); gpus], cores: 16, memory_bytes: 1 << 30 }
    }

    fn options(text: &str) -> Options {
        Options::parse("worker.toml", text).unwrap()
    }

    #[test]
    fn flags_win_over_the_file_and_the_machine_fills_the_rest() {
        let file = options("coordinator = 'http://a:1'\npeer_host = '10.0.0.2'\ntrainers = 8");
        let config = options("trainers = 3").over(file).resolve(machine(4), Some("/var/lib".into())).unwrap();
        assert_eq!((config.coordinator.as_str(), config.peer_host.as_str()), ("http://a:1", "10.0.0.2"));
        assert_eq!((config.inventory.trainers, config.threads, config.ranks_per_gpu), (3, 5, 1));
        assert_eq!(config.state, PathBuf::from("/var/lib/llm2clip/worker-box"));
        let config = options("coordinator = 'http://a:1'").resolve(machine(4), Some("/var/lib".into())).unwrap();
        assert_eq!((config.inventory.trainers, config.threads, config.lease.as_secs()), (4, 4, 30));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |text: &str, expected: &str| {
            let error = options(text).resolve(machine(0), None).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("state = '/s'", "--coordinator");
        check("coordinator = 'http://a:1'", "--state");
        check("trainers = 0\nstate = '/s'\ncoordinator = 'http://a:1'", "--trainers must be 1 or more");
        check("lease_s = 0\nstate = '/s'\ncoordinator = 'http://a:1'", "--lease-s must be 1 or more");
        check("id = 'my box'", "--id");
        check("preempt_grace_s = 5\nstate = '/s'\ncoordinator = 'http://a:1'", "--preempt-grace-s is 5");
        let error = Options::parse("worker.toml", "id = 'a'\ntrainer = 1").unwrap_err().to_string();
        assert_eq!(error, "worker.toml:2: `trainer` is no key of these settings; did you mean `trainers`?");
    }

    /// The example, and the example with what it has behind `#` put in force.
    #[test]
    fn the_example_is_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/systemd/worker.toml");
        let text = std::fs::read_to_string(path).unwrap();
        let config = options(&text).resolve(machine(8), None).unwrap();
        assert_eq!((config.state, config.inventory.trainers), ("/var/lib/llm2clip-worker".into(), 8));
        let is_option = |line: &str| line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
        let lines = text.lines().map(|line| line.strip_prefix('#').filter(|line| is_option(line)).unwrap_or(line));
        let all = options(&lines.collect::<Vec<_>>().join("\n"));
        assert!(all.preempt_grace_s.is_some() && all.id.is_some() && all.ranks_per_gpu.is_some(), "{all:?}");
        all.resolve(machine(8), None).unwrap();
    }
}
