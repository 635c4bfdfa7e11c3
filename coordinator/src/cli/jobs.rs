//! Verbs over jobs and workers that ask and print.

use super::{
    Common,
    client::{Client, Workers},
    error::CliError,
    follow::Screen,
    local::Coordinator,
    locate::{self, Place},
    output::{self, Format},
    run::end,
    why::explain,
};
use common::{
    daemon::clock::{now, rfc3339},
    refusal::Refused,
    status::{Barred, JobStatus, Phase, WorkerStatus},
};
use std::{path::Path, time::Duration};

/// Where `serve` listens unless told otherwise.
pub(super) const DEFAULT_COORDINATOR: &str = "http://127.0.0.1:7070";

/// How long people are shown who was refused; machines are shown all that is kept.
const SHOWN: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, clap::Args)]
pub(super) struct JobArg {
    /// A job's id or its output folder
    pub job: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct WorkerArg {
    /// A worker's id
    worker: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// A job's id or its output folder
    job: String,
    /// Show the job until it has ended, and end with its exit code
    #[arg(short, long)]
    follow: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct EventsArgs {
    /// A job's id or its output folder
    job: String,
    /// Stay, and print new ones until the job has ended
    #[arg(short, long)]
    follow: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct ResumeArgs {
    /// A job's id or its output folder
    pub job: String,
    /// Go on from this checkpoint instead of the newest
    #[arg(long)]
    pub step: Option<u64>,
    /// Workers on this machine, for a job of `run`; as before unless given
    #[arg(long)]
    pub workers: Option<u32>,
    /// Ranks, for a job of a cluster; as before unless given
    #[arg(long)]
    pub ranks: Option<u32>,
    /// Machines, for a job of a cluster, with all of their trainers
    #[arg(long, conflicts_with = "ranks")]
    pub nodes: Option<usize>,
    /// Wait so long for so many machines
    #[arg(long, value_name = "SECONDS", default_value_t = 0, requires = "nodes")]
    pub wait: u64,
    /// New weights of the data sets that are mixed, from there on: `photos=3,art=1`
    #[arg(long, value_name = "NAME=N,...", value_delimiter = ',', value_parser = weight)]
    pub weights: Vec<(String, u32)>,
    /// Show the job until it has ended, and end with its exit code; jobs of `run` always do
    #[arg(long)]
    pub follow: bool,
}

/// `NAME=N`.
fn weight(text: &str) -> Result<(String, u32), String> {
    let (name, weight) = text.split_once('=').ok_or("write NAME=N, as in photos=3")?;
    let number = weight.trim().parse().map_err(|_| format!("`{weight}` is no whole number"))?;
    Ok((name.trim().to_owned(), number))
}

/// A coordinator that has the job, and the job's id there.
pub(super) struct Reached {
    pub client: Client,
    pub job: String,
    /// This process's own coordinator over the job's state, when no other runs.
    pub own: Option<Coordinator>,
}

impl Reached {
    pub(super) async fn end(self) {
        if let Some(own) = self.own {
            own.stop().await;
        }
    }
}

/// Finds the coordinator of a job, or opens its state in this process.
pub(super) async fn reach(job: &str, common: &Common) -> Result<Reached, CliError> {
    if let Some(url) = &common.coordinator {
        return Ok(Reached { client: Client::connect(url).await?, job: job.to_owned(), own: None });
    }
    let (state, id) = match locate::place(job) {
        Place::Local { state, job } => (state, job),
        Place::Remote { job } => {
            let client = Client::connect(DEFAULT_COORDINATOR).await.map_err(|_| {
                CliError::usage(format!(
                    "`{job}` is no job of `llm2clip run` on this machine and no output folder of one; \
                     for a job of a cluster give --coordinator URL"
                ))
            })?;
            return Ok(Reached { client, job, own: None });
        }
    };
    let (mut client, own) = open(&state).await?;
    let job = match id {
        Some(job) => job,
        None => {
            newest(&mut client).await?.ok_or_else(|| CliError::usage(format!("{} holds no job", state.display())))?
        }
    };
    Ok(Reached { client, job, own })
}

async fn open(state: &Path) -> Result<(Client, Option<Coordinator>), CliError> {
    if let Some(address) = locate::address(state)
        && let Ok(client) = Client::connect(&address.url).await
    {
        return Ok((client, None));
    }
    let own = Coordinator::open(state).await?;
    Ok((Client::connect(own.url()).await?, Some(own)))
}

/// The id of the newest job.
pub(super) async fn newest(client: &mut Client) -> Result<Option<String>, CliError> {
    let jobs = client.list().await?;
    Ok(jobs.into_iter().max_by_key(|job| job.created).map(|job| job.job.to_string()))
}

/// One word for a phase, and a note when nobody drives the job.
fn phase(status: &JobStatus, driven: bool) -> String {
    let word = match &status.phase {
        Phase::Waiting { .. } => "waiting",
        Phase::Running => "running",
        Phase::Stopping => "stopping",
        Phase::Stopped => "stopped",
        Phase::Succeeded => "succeeded",
        Phase::Failed { .. } => "failed",
    };
    if driven || status.phase.exit_code().is_some() { word.to_owned() } else { "interrupted".to_owned() }
}

pub(super) async fn ps(common: &Common) -> Result<u8, CliError> {
    let mut found: Vec<(JobStatus, bool)> = Vec::new();
    let cluster = match &common.coordinator {
        Some(url) => Some(Client::connect(url).await?),
        None => Client::connect(DEFAULT_COORDINATOR).await.ok(),
    };
    if let Some(mut client) = cluster {
        found.extend(client.list().await?.into_iter().map(|status| (status, true)));
    }
    if common.coordinator.is_none() {
        for pointer in locate::pointers() {
            // A job whose state cannot be read is left out of the list; `status` says why.
            let Ok((mut client, own)) = open(&pointer.state).await else { continue };
            if let Ok(status) = client.status(&pointer.job).await {
                found.push((status, own.is_none()));
            }
            if let Some(own) = own {
                own.stop().await;
            }
        }
    }
    found.sort_by_key(|(status, _)| std::cmp::Reverse(status.created));
    match common.format {
        Format::Json => output::print_json(Some("jobs"), &found.iter().map(|(status, _)| status).collect::<Vec<_>>()),
        Format::Text => {
            let rows: Vec<Vec<String>> = found.iter().map(|(status, driven)| row(status, *driven)).collect();
            output::print_table(&["job", "phase", "stage", "step", "ranks", "created", "output"], &rows);
        }
    }
    Ok(0)
}

fn row(status: &JobStatus, driven: bool) -> Vec<String> {
    let stage = status.stages.get(status.stage);
    let step =
        stage.and_then(|stage| stage.progress.as_ref()).map_or(String::new(), |p| format!("{}/{}", p.step, p.steps));
    vec![
        status.job.to_string(),
        phase(status, driven),
        stage.map_or_else(String::new, |stage| stage.kind.clone()),
        step,
        status.ranks.len().to_string(),
        rfc3339(status.created),
        status.output.display().to_string(),
    ]
}

pub(super) async fn status(args: &StatusArgs, common: &Common) -> Result<u8, CliError> {
    let mut reached = reach(&args.job, common).await?;
    if args.follow {
        return follow(reached, common).await;
    }
    let status = reached.client.status(&reached.job).await?;
    match common.format {
        Format::Json => output::print_json(None, &status),
        Format::Text => print_status(&status, reached.own.is_none()),
    }
    reached.end().await;
    Ok(0)
}

async fn follow(mut reached: Reached, common: &Common) -> Result<u8, CliError> {
    let status = reached.client.status(&reached.job).await?;
    if reached.own.is_some() && status.phase.exit_code().is_none() {
        reached.end().await;
        let job = status.job;
        return Err(CliError::new(4, format!("nobody drives {job} now; `llm2clip resume {job}` goes on with it")));
    }
    let mut watch = reached.client.watch(&reached.job).await?;
    let status = Screen::new(common.format).follow(&mut watch).await?;
    reached.end().await;
    Ok(end(&status, common.format))
}

fn print_status(status: &JobStatus, driven: bool) {
    println!("{}  {}  generation {}", status.job, phase(status, driven), status.generation);
    match &status.phase {
        Phase::Waiting { reason } if driven => println!("waits: {reason}"),
        Phase::Failed { message, .. } => println!("{message}"),
        _ => {}
    }
    if let Some(alarm) = &status.alarm {
        println!("ALARM: {alarm}");
    }
    println!("output {}", status.output.display());
    if let Some(checkpoints) = &status.checkpoints {
        println!("checkpoints {}", checkpoints.display());
    }
    println!();
    let stages: Vec<Vec<String>> = status
        .stages
        .iter()
        .enumerate()
        .map(|(number, stage)| {
            let progress = stage.progress.as_ref();
            let state = if stage.done {
                "done"
            } else if number == status.stage {
                "now"
            } else {
                ""
            };
            vec![
                stage.kind.clone(),
                state.to_owned(),
                progress.map_or(String::new(), |p| format!("{}/{}", p.step, p.steps)),
                progress.and_then(|p| p.loss).map_or(String::new(), |loss| format!("{loss:.4}")),
                progress.and_then(|p| p.samples_per_s).map_or(String::new(), |rate| format!("{rate:.0}")),
                stage.checkpoint.map_or(String::new(), |step| step.to_string()),
            ]
        })
        .collect();
    output::print_table(&["stage", "state", "step", "loss", "samples/s", "checkpoint"], &stages);
    let progress = status.stages.iter().filter_map(|stage| stage.progress.as_ref());
    for (number, found) in progress.flat_map(|progress| &progress.evaluated).enumerate() {
        println!("{}{found}", if number == 0 { "\n" } else { "" });
    }
    if !status.ranks.is_empty() {
        println!();
        let ranks: Vec<Vec<String>> = status
            .ranks
            .iter()
            .map(|rank| {
                let pid = rank.pid.map_or(String::new(), |pid| pid.to_string());
                vec![
                    rank.rank.to_string(),
                    rank.worker.to_string(),
                    rank.slot.to_string(),
                    pid,
                    rank.peer.clone().unwrap_or_default(),
                    rank.step.map_or(String::new(), |step| step.to_string()),
                    rank.own_step_s.map_or(String::new(), |own| format!("{own:.3}")),
                    if rank.straggles { "slow".to_owned() } else { String::new() },
                ]
            })
            .collect();
        output::print_table(&["rank", "worker", "slot", "pid", "peer", "step", "own s/step", ""], &ranks);
        if status.spares > 0 {
            println!("{} more stand ready to take a lost one's rank", status.spares);
        }
    }
    if !driven && status.phase.exit_code().is_none() {
        println!("\nits `llm2clip run` is gone; next: llm2clip resume {}", status.job);
    }
}

pub(super) async fn why(args: &JobArg, common: &Common) -> Result<u8, CliError> {
    let mut reached = reach(&args.job, common).await?;
    let status = reached.client.status(&reached.job).await?;
    match common.format {
        Format::Json => {
            let (phase, alarm, failures) = (&status.phase, &status.alarm, &status.failures);
            let document =
                serde_json::json!({ "job": status.job, "phase": phase, "alarm": alarm, "failures": failures });
            output::print_json(None, &document);
        }
        Format::Text => {
            explain(&status).iter().for_each(|line| println!("{line}"));
            if reached.own.is_some() && status.phase.exit_code().is_none() {
                println!("\nits `llm2clip run` ended without a word; next: llm2clip resume {}", status.job);
            }
        }
    }
    reached.end().await;
    Ok(0)
}

pub(super) async fn events(args: &EventsArgs, common: &Common) -> Result<u8, CliError> {
    let mut reached = reach(&args.job, common).await?;
    // A job that nobody drives has no new events.
    let follow = args.follow && reached.own.is_none();
    let mut events = reached.client.events(&reached.job, 0, follow).await?;
    let mut all = Vec::new();
    while let Some(event) = events.next().await? {
        match common.format {
            Format::Text => {
                println!(
                    "{}  {:>4}  gen {:<3} {:<24} {}",
                    rfc3339(event.at),
                    event.sequence,
                    event.generation,
                    event.kind,
                    event.message
                );
            }
            Format::Json => all.push(event),
        }
    }
    if common.format == Format::Json {
        output::print_json(Some("events"), &all);
    }
    reached.end().await;
    Ok(0)
}

pub(super) async fn stop(args: &JobArg, common: &Common) -> Result<u8, CliError> {
    let mut reached = reach(&args.job, common).await?;
    let mut status = reached.client.stop(&reached.job).await?;
    if reached.own.is_none() {
        let mut watch = reached.client.watch(&reached.job).await?;
        let mut screen = super::follow::Screen::new(Format::Json);
        status = screen.follow(&mut watch).await?;
    }
    match common.format {
        Format::Json => output::print_json(None, &status),
        Format::Text => {
            let next = if matches!(status.phase, Phase::Succeeded) { "status" } else { "resume" };
            println!("{} {}; next: llm2clip {next} {}", status.job, phase(&status, true), status.job);
        }
    }
    reached.end().await;
    Ok(if matches!(status.phase, Phase::Stopped | Phase::Succeeded) {
        0
    } else {
        status.phase.exit_code().unwrap_or(5)
    })
}

pub(super) async fn workers(common: &Common) -> Result<u8, CliError> {
    let url = common.coordinator.as_deref().unwrap_or(DEFAULT_COORDINATOR);
    let workers = Client::connect(url).await?.workers().await?;
    show_workers(&workers, common);
    Ok(0)
}

/// Drains a worker, or lifts that; shows all of them.
pub(super) async fn drain(args: &WorkerArg, undo: bool, common: &Common) -> Result<u8, CliError> {
    let url = common.coordinator.as_deref().unwrap_or(DEFAULT_COORDINATOR);
    let workers = Client::connect(url).await?.drain(&args.worker, undo).await?;
    show_workers(&workers, common);
    Ok(0)
}

fn show_workers(found: &Workers, common: &Common) {
    match common.format {
        Format::Json => output::print_json(None, found),
        Format::Text => {
            let rows: Vec<Vec<String>> = found.workers.iter().map(worker_row).collect();
            output::print_table(
                &["worker", "state", "trainers", "busy", "gpus", "cores", "memory", "host", "version"],
                &rows,
            );
            let recent = found.refused.iter().filter(|refused| now().since(refused.seen) < SHOWN);
            recent.for_each(|refused| println!("\n{}", refusal(refused)));
        }
    }
}

/// Who was not taken in: when, how often, why.
fn refusal(refused: &Refused) -> String {
    let times = match refused.count {
        1 => String::new(),
        count => format!(" ({count} times since {})", rfc3339(refused.since)),
    };
    format!("{}{times}: {}", rfc3339(refused.seen), refused.message)
}

fn worker_state(worker: &WorkerStatus) -> String {
    let there = if worker.connected { "connected".to_owned() } else { format!("lost, seen {}", rfc3339(worker.seen)) };
    match worker.barred {
        Some(barred @ Barred::Quarantined { until, .. }) => format!("{there}, {barred} until {}", rfc3339(until)),
        Some(barred) => format!("{there}, {barred}"),
        None => there,
    }
}

fn worker_row(worker: &WorkerStatus) -> Vec<String> {
    let inventory = &worker.inventory;
    vec![
        worker.worker.to_string(),
        worker_state(worker),
        inventory.trainers.to_string(),
        worker.busy.len().to_string(),
        inventory.gpus.len().to_string(),
        inventory.cores.to_string(),
        output::bytes(inventory.memory_bytes),
        inventory.host.clone(),
        inventory.version.clone(),
    ]
}
