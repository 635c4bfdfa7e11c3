//! `llm2clip-trainer`: one process per device. Started by the worker; its other commands are reached through `llm2clip`.

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use worker::{
    bench, checkpoint,
    data::{arguments, inspect, order, verify},
    encode, export, forecast, storage,
    trainer::session,
};

/// The process that computes. `llm2clip-worker` starts it; `llm2clip bench`, `data`, `export` and `encode` pass on to it
#[derive(Debug, Parser)]
#[command(name = "llm2clip-trainer", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the plans that the agent behind a socket hands out
    #[command(hide = true)]
    Run(session::RunArgs),
    /// Look at data sets
    #[command(subcommand)]
    Data(DataCommand),
    /// What the coordinator wants to know of a bucket
    #[command(hide = true)]
    Objects(storage::AskArgs),
    /// What checkpoints there are in a bucket (`llm2clip ckpt`), as JSON
    #[command(hide = true)]
    Checkpoints(checkpoint::ListArgs),
    /// Write a trained model as transformers, open_clip and peft load it
    Export(export::ExportArgs),
    /// Features of images and texts by an exported model
    Encode(encode::EncodeArgs),
    /// What a job would do and take (`run --dry-run`)
    #[command(hide = true)]
    Forecast(forecast::ForecastArgs),
    /// Measure this machine; every figure is named with its unit
    #[command(
        subcommand,
        after_help = "Of a whole cluster on this machine: llm2clip bench recovery, llm2clip bench control"
    )]
    Bench(bench::BenchCommand),
}

#[derive(Debug, Subcommand)]
enum DataCommand {
    /// What is in a data set, and what is broken
    Inspect(inspect::InspectArgs),
    /// Make the index of shards, which the first job that needs it would make
    Index(arguments::ShardsArgs),
    /// Decode everything and list what is bad
    Verify(verify::VerifyArgs),
    /// Which samples a step of training has, or when a sample comes up
    Order(order::OrderArgs),
}

fn main() -> ExitCode {
    // A panic on any thread is the end of the process: a rank that limps on would hang its peers.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // `| head` has read enough: nobody is left to be told anything.
        if panic.payload_as_str().is_some_and(|said| said.starts_with("failed printing to stdout: Broken pipe")) {
            std::process::exit(0);
        }
        print(panic);
        // Once more, at the end: `why` shows the last lines, and a backtrace would push the message out of them.
        eprintln!("error: {panic}");
        std::process::exit(101);
    }));
    let cli = Cli::parse();
    match cli.command {
        Command::Run(args) => {
            common::daemon::telemetry::init(false);
            match session::run(&args) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("error: {error}");
                    ExitCode::FAILURE
                }
            }
        }
        Command::Data(DataCommand::Inspect(args)) => end(inspect::main(&args)),
        Command::Data(DataCommand::Index(args)) => end(verify::index(&args)),
        Command::Data(DataCommand::Verify(args)) => end(verify::main(&args)),
        Command::Data(DataCommand::Order(args)) => end(order::main(&args)),
        Command::Forecast(args) => end(forecast::main(&args)),
        Command::Objects(args) => end(storage::main(&args)),
        Command::Checkpoints(args) => end(checkpoint::main(&args)),
        Command::Export(args) => end(export::main(&args)),
        Command::Encode(args) => end(encode::main(&args)),
        Command::Bench(command) => end(bench::main(&command)),
    }
}

fn end(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes, each as far as it says more than what stands before it.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            let between = if text.is_empty() { "" } else { ": " };
            text = format!("{text}{between}{cause}");
        }
    }
    text
}
