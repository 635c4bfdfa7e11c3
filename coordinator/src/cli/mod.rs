//! The command line. Knows the coordinator through its API only, except where it starts one.
//!
//! `local` runs a coordinator and workers on this machine, `client` speaks to a coordinator, `locate` finds the one that
//! has a job, `follow` shows a job while it runs; the other files are verbs.

mod bench;
mod ckpt;
mod client;
mod compare;
mod dry_run;
mod error;
mod follow;
mod jobs;
mod launch;
mod leftovers;
mod local;
mod locate;
mod logs;
mod output;
mod pass;
mod recipe;
mod run;
mod serve;
mod why;

use clap::{Parser, Subcommand};
use error::CliError;
use std::process::ExitCode;

/// Train LLM2CLIP models on one machine or many
#[derive(Debug, Parser)]
#[command(
    name = "llm2clip",
    version,
    after_help = "JOB is a job's id or its output folder.\n\
        Exit codes: 0 done, 1 trainer failed, 2 usage or recipe, 3 not enough workers, 4 stopped, \
        5 contact lost, 6 restarts used up, 93 no progress.\n\
        First steps: llm2clip run configs/demo-quick.toml --workers 2"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// Where the coordinator is, such as http://10.0.0.1:7070, or several with commas between; jobs of `run` are found without it
    #[arg(long, global = true, env = "LLM2CLIP_COORDINATOR", value_name = "URL[,URL]")]
    coordinator: Option<String>,
    /// What to print on stdout: text, or one JSON document
    #[arg(short, long, global = true, value_enum, default_value_t = output::Format::Text)]
    output: output::Format,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a recipe on this machine, follow it, and end with its exit code
    Run(run::RunArgs),
    /// Evaluate a trained model on the data of a recipe
    Eval(run::EvalArgs),
    /// Run a coordinator for a cluster
    Serve(serve::ServeArgs),
    /// Submit a recipe to a coordinator
    Launch(launch::LaunchArgs),
    /// List jobs
    Ps,
    /// Where a job stands
    Status(jobs::StatusArgs),
    /// What the trainers of a job print
    Logs(logs::LogsArgs),
    /// What happened to a job
    Events(jobs::EventsArgs),
    /// Why a job waits, failed or was restarted
    Why(jobs::JobArg),
    /// Write a checkpoint and stop
    Stop(jobs::JobArg),
    /// Go on from a checkpoint
    Resume(jobs::ResumeArgs),
    /// List workers
    Workers,
    /// Give a worker no new trainers; its jobs write a checkpoint and go on elsewhere
    Drain(jobs::WorkerArg),
    /// Make a drained worker, or one in quarantine, one like others again
    Undrain(jobs::WorkerArg),
    /// Look at checkpoints
    #[command(subcommand)]
    Ckpt(ckpt::CkptCommand),
    /// Evaluations of several jobs side by side
    Compare(compare::CompareArgs),
    /// Look at data sets
    #[command(disable_help_flag = true)]
    Data(pass::PassArgs),
    /// Write a trained model as transformers, open_clip and peft load it
    #[command(disable_help_flag = true)]
    Export(pass::PassArgs),
    /// Features of images and texts by an exported model
    #[command(disable_help_flag = true)]
    Encode(pass::PassArgs),
    /// Measure this machine; with `recovery` and `control`, a cluster on it
    #[command(disable_help_flag = true)]
    Bench(pass::PassArgs),
}

/// What verbs share.
#[derive(Debug, Clone)]
struct Common {
    coordinator: Option<String>,
    format: output::Format,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let common = Common { coordinator: cli.coordinator, format: cli.output };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return CliError::new(1, format!("this process cannot start threads: {error}")).report(),
    };
    let result = runtime.block_on(dispatch(cli.verb, &common));
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => error.report(),
    }
}

async fn dispatch(verb: Verb, common: &Common) -> Result<u8, CliError> {
    match verb {
        Verb::Run(args) => run::run(&args, common).await,
        Verb::Eval(args) => run::evaluate(&args, common).await,
        Verb::Serve(args) => serve::serve(&args).await,
        Verb::Launch(args) => launch::launch(&args, common).await,
        Verb::Ps => jobs::ps(common).await,
        Verb::Status(args) => jobs::status(&args, common).await,
        Verb::Logs(args) => logs::logs(&args, common).await,
        Verb::Events(args) => jobs::events(&args, common).await,
        Verb::Why(args) => jobs::why(&args, common).await,
        Verb::Stop(args) => jobs::stop(&args, common).await,
        Verb::Resume(args) => run::resume(&args, common).await,
        Verb::Workers => jobs::workers(common).await,
        Verb::Drain(args) => jobs::drain(&args, false, common).await,
        Verb::Undrain(args) => jobs::drain(&args, true, common).await,
        Verb::Ckpt(command) => ckpt::main(&command, common).await,
        Verb::Compare(args) => compare::compare(&args, common),
        Verb::Data(args) => pass::to_trainer("data", &args, common),
        Verb::Export(args) => pass::to_trainer("export", &args.with_jobs_as_folders(), common),
        Verb::Encode(args) => pass::to_trainer("encode", &args, common),
        Verb::Bench(args) => bench::bench(&args, common).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent_and_its_help_fits_a_screen() {
        super::Cli::command().debug_assert();
        let help = super::Cli::command().render_help().to_string();
        assert!(help.lines().count() <= 40, "{help}");
    }
}
