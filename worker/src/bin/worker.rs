//! `llm2clip-worker`: the daemon of one machine. It starts trainers when the coordinator says so, and computes nothing.

// Compiled into the daemon itself: through the library the linker would bring libtorch's initialisers along.
#[allow(unused_imports, reason = "what the library's other users need")]
#[path = "../agent/mod.rs"]
mod agent;
#[allow(dead_code, unused_imports, reason = "what the library's other users need")]
#[path = "../supervisor/mod.rs"]
mod supervisor;

use agent::{Config, ConfigError, Leaving, Machine, Options, config};
use clap::Parser;
use common::daemon::{notify::Manager, shutdown, telemetry};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use std::{path::PathBuf, process::ExitCode, time::Duration};

/// Exit code for settings that cannot be.
const USAGE: u8 = 2;

/// Runs trainers on this machine for a coordinator
#[derive(Debug, Parser)]
#[command(name = "llm2clip-worker", version)]
struct Cli {
    #[command(flatten)]
    options: Options,
    /// TOML file of these options, with `_` for `-`; flags and the environment win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// End, and all trainers with it, when the process that started this one ends
    #[arg(long)]
    with_parent: bool,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == supervisor::hold::ARGUMENT) {
        return supervisor::hold::main(arguments);
    }
    let cli = Cli::parse();
    let parent = getppid();
    if cli.with_parent && set_parent_process_death_signal(Some(Signal::TERM)).is_err() {
        return fail(1, &"the system cannot tell when the parent process ends");
    }
    if cli.with_parent && getppid() != parent {
        return ExitCode::SUCCESS; // It ended before the system was asked to tell.
    }
    let with_parent = cli.with_parent;
    let (config, log_json) = match resolve(cli) {
        Ok(resolved) => resolved,
        Err(error) => return fail(USAGE, &error),
    };
    telemetry::init(log_json);
    // One that another process started is not the service itself.
    let manager = if with_parent { Manager::default() } else { Manager::of_environment() };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format_args!("cannot start: {error}")),
    };
    let grace = config.preempt_grace;
    match runtime.block_on(agent::run(config, manager, leave(with_parent, grace))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error),
    }
}

/// The settings, and whether to log JSON.
fn resolve(cli: Cli) -> Result<(Config, bool), ConfigError> {
    let file = cli.config.map(Options::read).transpose()?.unwrap_or_default();
    let options = cli.options.over(file);
    let log_json = options.log_json;
    Ok((options.resolve(Machine::look(), config::state_home())?, log_json))
}

/// Waits for SIGTERM or SIGINT. Without a parent to follow, trainers are left to the next daemon, unless the machine is taken
/// away.
async fn leave(with_parent: bool, grace: Option<Duration>) -> Leaving {
    match shutdown::signalled().await {
        Ok(signal) => tracing::info!(signal, with_parent, "ending"),
        Err(error) => tracing::error!(%error, "cannot wait for signals, ending"),
    }
    match grace {
        _ if with_parent => Leaving::WithTrainers,
        Some(grace) => Leaving::Preempted(grace),
        None => Leaving::Alone,
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(code)
}
