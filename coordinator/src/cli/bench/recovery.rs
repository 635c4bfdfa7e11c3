//! `bench recovery`: trainers of a real training on this machine are killed one after the other, and the time is taken until the
//! training has taken a step that is new.

use super::super::{
    client::Client,
    error::CliError,
    local::{Coordinator, Settings, Workers},
    output::{self, Format},
    recipe::{self, RecipeArgs},
    run::job_id,
};
use common::{
    ids::Rank,
    recipe::{Elastic, Recipe, Stage},
    status::{JobStatus, Phase},
};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::Instant;

/// How often the metrics are looked at.
const LOOK: Duration = Duration::from_millis(2);
/// How long a line that was on its way when a trainer was killed may take to the file.
const ON_ITS_WAY: Duration = Duration::from_millis(20);
/// How many steps are taken between two kills.
const BETWEEN: u64 = 6;
/// How long steps may take to come.
const DEADLINE: Duration = Duration::from_secs(600);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Runs the recipe's first stage that trains, and what stands before it, in a folder that is deleted afterwards. No\n\
    checkpoint is written: whatever goes on, goes on from memory. The time is that until the second step\n\
    after the kill is in the metrics, as the first may have been under way.\n\
    Example: llm2clip bench recovery configs/demo-quick.toml --kills 10 -o json"
)]
pub(super) struct RecoveryArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Worker daemons, with one trainer each; one more for a spare
    #[arg(long, default_value_t = 2)]
    workers: u32,
    /// How many trainers to kill, ranks by turns
    #[arg(long, default_value_t = 10)]
    kills: u32,
    /// Keep a trainer ready to take a killed one's rank
    #[arg(long)]
    spare: bool,
    /// CPU cores to share out among all trainers; all unless given
    #[arg(long, value_name = "N")]
    cores: Option<u32>,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Measured {
    ranks: u32,
    spare: bool,
    kills: u32,
    kill_to_next_new_step_s: Spread,
    /// Of a step while nothing is killed.
    step_s: f64,
    /// Steps that were computed twice, or whose figures are missing although no rank 0 was killed with them.
    steps_lost: u64,
    /// Lines that rank 0 had not written when it was killed.
    metrics_lines_missing: u64,
}

#[derive(Debug, Serialize)]
struct Spread {
    median: f64,
    worst: f64,
    all: Vec<f64>,
}

impl Spread {
    fn of(all: Vec<f64>) -> Self {
        let mut sorted = all.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        Self {
            median: f64::midpoint(at((sorted.len().max(1) - 1) / 2), at(sorted.len() / 2)),
            worst: at(sorted.len().max(1) - 1),
            all,
        }
    }
}

/// Runs the bench.
pub(super) async fn measure(args: &RecoveryArgs, format: Format) -> Result<u8, CliError> {
    if args.workers < 2 || args.kills == 0 {
        return Err(CliError::usage("--workers must be 2 or more, --kills 1 or more: somebody has to keep the state"));
    }
    let folder = tempfile::tempdir().map_err(|error| CliError::new(1, format!("no temporary folder: {error}")))?;
    let (recipe, stage) = prepared(recipe::load(&args.recipe)?, folder.path(), args)?;
    let settings = Settings::new(args.workers + u32::from(args.spare), Some(1), args.cores)?;
    let coordinator = Coordinator::open(&folder.path().join("state")).await?;
    let mut client = Client::connect(coordinator.url()).await?;
    let job = job_id(&recipe.name);
    client.submit(&job, &recipe, args.workers).await?;
    let mut workers = Workers::start(&coordinator, &settings, &recipe.output.join("logs"))?;
    let mut bench = Bench { client, job, metrics: recipe.output.join(stage).join("metrics.jsonl"), args };
    let measured = tokio::select! {
        measured = bench.run() => measured,
        died = workers.watch() => Err(CliError::new(1, died?)),
    };
    workers.end().await;
    coordinator.stop().await;
    print(&measured?, format);
    Ok(0)
}

/// The recipe up to its first stage that trains, which has no end and writes nothing; and that stage's name.
fn prepared(mut recipe: Recipe, folder: &Path, args: &RecoveryArgs) -> Result<(Recipe, &'static str), CliError> {
    let trains = |stage: &Stage| stage.training().is_some();
    let at = recipe.stages.iter().position(trains).ok_or_else(|| CliError::usage("no stage of the recipe trains"))?;
    recipe.stages.truncate(at + 1);
    recipe.output = folder.join("output");
    recipe.faults.max_failures = u32::MAX;
    recipe.elastic = args.spare.then_some(Elastic {
        min_ranks: args.workers,
        max_ranks: Some(args.workers),
        grace: Duration::ZERO,
        spares: 1,
    });
    let stage = &mut recipe.stages[at];
    let kind = stage.kind();
    if let Some(training) = stage.training_mut() {
        training.checkpoint.every_steps = u64::MAX;
        training.length = common::recipe::Length::Steps(u64::from(u32::MAX));
    }
    Ok((recipe, kind))
}

struct Bench<'a> {
    client: Client,
    job: String,
    metrics: PathBuf,
    args: &'a RecoveryArgs,
}

impl Bench<'_> {
    async fn run(&mut self) -> Result<Measured, CliError> {
        eprintln!("waits for the first steps");
        self.wait_for(BETWEEN).await?;
        let began = (Instant::now(), self.newest());
        self.wait_for(began.1 + BETWEEN).await?;
        let step_s = began.0.elapsed().as_secs_f64() / (self.newest() - began.1) as f64;
        let (mut times, mut first) = (Vec::new(), 0);
        for number in 0..self.args.kills {
            let rank = Rank((number + 1) % self.args.workers);
            first += u64::from(rank.0 == 0);
            let pid = self.ready(rank).await?;
            let killed = Instant::now();
            kill_process(pid, Signal::KILL).map_err(|error| CliError::new(1, format!("rank {rank}: {error}")))?;
            tokio::time::sleep(ON_ITS_WAY).await;
            let reached = self.newest();
            self.wait_for(reached + 2).await?;
            times.push(killed.elapsed().as_secs_f64());
            eprintln!("rank {rank} killed after step {reached}: a new step after {:.2} s", times[times.len() - 1]);
            self.wait_for(reached + 2 + BETWEEN).await?;
        }
        let counted = self.counted();
        let twice: u64 = counted.values().map(|count| count - 1).sum();
        let missing = counted.keys().next_back().copied().unwrap_or_default() - counted.len() as u64;
        Ok(Measured {
            ranks: self.args.workers,
            spare: self.args.spare,
            kills: self.args.kills,
            kill_to_next_new_step_s: Spread::of(times),
            step_s,
            steps_lost: twice + missing.saturating_sub(first),
            metrics_lines_missing: missing,
        })
    }

    /// The process of a rank of a membership that is complete.
    async fn ready(&mut self, rank: Rank) -> Result<Pid, CliError> {
        let complete = |status: &JobStatus, args: &RecoveryArgs| {
            status.phase == Phase::Running && status.spares >= u32::from(args.spare)
        };
        let mut watch = self.client.watch(&self.job).await?;
        while let Some(status) = watch.next().await? {
            if let Phase::Failed { message, .. } = status.phase {
                return Err(CliError::new(1, message));
            }
            let pid = status.ranks.get(rank.0 as usize).and_then(|found| found.pid);
            if let (true, Some(pid)) = (complete(&status, self.args), pid) {
                return Pid::from_raw(pid.cast_signed()).ok_or_else(|| CliError::new(1, "a rank without a process"));
            }
        }
        Err(CliError::new(1, "the job ended"))
    }

    /// How often each step stands in the metrics; a line that is being written is left out.
    fn counted(&self) -> BTreeMap<u64, u64> {
        let text = std::fs::read_to_string(&self.metrics).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut counted = BTreeMap::new();
        for line in whole.lines() {
            let step = serde_json::from_str::<serde_json::Value>(line).ok().and_then(|line| line["step"].as_u64());
            *counted.entry(step.unwrap_or_default()).or_default() += 1;
        }
        counted
    }

    fn newest(&self) -> u64 {
        self.counted().keys().next_back().copied().unwrap_or_default()
    }

    async fn wait_for(&mut self, step: u64) -> Result<(), CliError> {
        let end = Instant::now() + DEADLINE;
        while self.newest() < step {
            if Instant::now() > end {
                let status = self.client.status(&self.job).await?;
                let why = super::super::why::explain(&status).join("\n");
                return Err(CliError::new(
                    1,
                    format!("step {step} did not come within {} s\n{why}", DEADLINE.as_secs()),
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

fn print(measured: &Measured, format: Format) {
    if format == Format::Json {
        return output::print_json(None, measured);
    }
    let Measured { ranks, kills, kill_to_next_new_step_s: Spread { median, worst, .. }, .. } = measured;
    let spare = if measured.spare { ", one spare" } else { "" };
    println!("{kills} kills, {ranks} ranks{spare}, a step takes {:.3} s", measured.step_s);
    println!("  from the kill to a new step  {median:.2} s (median), {worst:.2} s (worst)");
    println!("  steps lost                   {}", measured.steps_lost);
    println!("  lines of metrics missing     {}", measured.metrics_lines_missing);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_two() {
        let check = |all: &[f64], median: f64, worst: f64| {
            let spread = Spread::of(all.to_vec());
            assert_eq!((spread.median, spread.worst), (median, worst));
        };
        check(&[3.0, 1.0, 2.0], 2.0, 3.0);
        check(&[4.0, 1.0, 2.0, 3.0], 2.5, 4.0);
        check(&[1.0], 1.0, 1.0);
    }
}
