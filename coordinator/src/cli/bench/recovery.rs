//! `bench recovery`: trainers of a real training on this machine are killed one after the other, in each phase of their life, and the
//! time is taken until others have seen it and the training has taken a step that is new: one that no rank had.

mod figures;
mod metrics;
mod schedule;
mod witnesses;

use super::{
    super::{
        client::Client,
        error::CliError,
        local::{Coordinator, Settings, Workers},
        output::{self, Format},
        recipe::{self, RecipeArgs},
        run::job_id,
    },
    process::{is_stopped, stopped_below},
};
use common::{
    recipe::{Elastic, Recipe, Stage},
    status::{JobStatus, Phase as JobPhase},
};
use figures::{Death, Measured, OfPhase, Spread};
use jiff::Timestamp;
use metrics::Metrics;
use rustix::process::{Pid, Signal, kill_process};
use schedule::{Phase, Planned};
use std::{path::Path, time::Duration};
use tokio::time::Instant;
use witnesses::Witnesses;

/// How often the metrics are looked at.
const LOOK: Duration = Duration::from_millis(2);
/// How many steps are taken between two kills at any moment.
const BETWEEN: u64 = 6;
/// How long steps may take to come.
const DEADLINE: Duration = Duration::from_secs(600);
/// How long a daemon may take to log an end.
const TOLD: Duration = Duration::from_secs(5);
/// Steps between two checkpoints, where deaths in one are measured.
const CHECKPOINTS: u64 = 10;
/// Of the metrics, the lines of the newest step and of the one before, which has not been read yet, may go with their rank 0.
const WITH_RANK_0: u64 = 2;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Runs the recipe's first stage that trains, and what stands before it, in a folder that is deleted afterwards. No\n\
    checkpoint is read: whatever goes on, goes on from memory. A trainer is stopped where it is to die, and then\n\
    killed. The times are those until its daemon's log says so, until the last of its peers' logs says that it\n\
    waits no longer, and until the step after the one that the ranks went on from is in the metrics.\n\
    Example: llm2clip bench recovery configs/demo-quick.toml --kills 10 -o json"
)]
pub(super) struct RecoveryArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Worker daemons, with one trainer each; one more for a spare
    #[arg(long, default_value_t = 2)]
    workers: u32,
    /// In what to kill them; several with commas between. All, one after the other, unless given
    #[arg(long, value_enum, value_delimiter = ',')]
    phase: Vec<Phase>,
    /// How many trainers to kill in each phase, ranks by turns
    #[arg(long, default_value_t = 10)]
    kills: u32,
    /// Keep a trainer ready to take a killed one's rank
    #[arg(long)]
    spare: bool,
    /// CPU cores to share out among all trainers; all unless given
    #[arg(long, value_name = "N")]
    cores: Option<u32>,
}

impl RecoveryArgs {
    fn phases(&self) -> Result<Vec<Phase>, CliError> {
        if self.workers < 2 || self.kills == 0 {
            return Err(CliError::usage(
                "--workers must be 2 or more, --kills 1 or more: somebody has to keep the state",
            ));
        }
        // A spare has started already.
        match self.phase.as_slice() {
            [] => Ok(Phase::ALL.into_iter().filter(|phase| !self.spare || *phase != Phase::Start).collect()),
            phases if self.spare && phases.contains(&Phase::Start) => Err(CliError::usage(
                "--phase start has no meaning with --spare: whoever takes the rank has started before",
            )),
            phases => Ok(phases.to_vec()),
        }
    }
}

/// Runs the bench.
pub(super) async fn measure(args: &RecoveryArgs, format: Format) -> Result<u8, CliError> {
    let phases = args.phases()?;
    let folder = tempfile::tempdir().map_err(|error| CliError::new(1, format!("no temporary folder: {error}")))?;
    let (recipe, stage) = prepared(recipe::load(&args.recipe)?, folder.path(), args, &phases)?;
    // Each stage before it is one membership.
    let schedule = schedule::schedule(&phases, args.kills, args.workers, recipe.stages.len() as u64);
    let settings = Settings::new(args.workers + u32::from(args.spare), Some(1), args.cores)?;
    let coordinator = Coordinator::open(&folder.path().join("state")).await?;
    let mut client = Client::connect(coordinator.url()).await?;
    let job = job_id(&recipe.name);
    client.submit(&job, &recipe, args.workers).await?;
    let logs = recipe.output.join("logs");
    let mut workers = Workers::start_with(&coordinator, &settings, &logs, &schedule::environment(&schedule))?;
    let metrics = Metrics::new(recipe.output.join(stage).join("metrics.jsonl"));
    let mut bench = Bench { client, job, metrics, witnesses: Witnesses::new(logs), args };
    let measured = tokio::select! {
        measured = bench.run(&phases, &schedule) => measured,
        died = workers.watch() => Err(CliError::new(1, died?)),
    };
    workers.end().await;
    coordinator.stop().await;
    let measured = measured?;
    match format {
        Format::Json => output::print_json(None, &measured),
        Format::Text => measured.lines().iter().for_each(|line| println!("{line}")),
    }
    Ok(0)
}

/// The recipe up to its first stage that trains, which has no end; and that stage's name.
fn prepared(
    mut recipe: Recipe,
    folder: &Path,
    args: &RecoveryArgs,
    phases: &[Phase],
) -> Result<(Recipe, &'static str), CliError> {
    let trains = |stage: &Stage| stage.training().is_some();
    let at = recipe.stages.iter().position(trains).ok_or_else(|| CliError::usage("no stage of the recipe trains"))?;
    recipe.stages.truncate(at + 1);
    recipe.output = folder.join("output");
    recipe.checkpoints = None;
    recipe.faults.max_failures = u32::MAX;
    // Deaths may come faster than reports of steps.
    recipe.faults.max_no_progress = u32::MAX;
    recipe.elastic = args.spare.then_some(Elastic {
        min_ranks: args.workers,
        max_ranks: Some(args.workers),
        grace: Duration::ZERO,
        spares: 1,
    });
    let stage = &mut recipe.stages[at];
    let kind = stage.kind();
    if phases.contains(&Phase::Forward) && kind != "clip" {
        return Err(CliError::usage(format!(
            "--phase forward is known of `clip` alone, and `{kind}` is the recipe's first stage that trains: name the other phases"
        )));
    }
    if let Some(training) = stage.training_mut() {
        training.checkpoint.every_steps = if phases.contains(&Phase::Checkpoint) { CHECKPOINTS } else { u64::MAX };
        training.length = common::recipe::Length::Steps(u64::from(u32::MAX));
    }
    Ok((recipe, kind))
}

struct Bench<'a> {
    client: Client,
    job: String,
    metrics: Metrics,
    witnesses: Witnesses,
    args: &'a RecoveryArgs,
}

impl Bench<'_> {
    async fn run(&mut self, phases: &[Phase], schedule: &[Planned]) -> Result<Measured, CliError> {
        eprintln!("waits for the first steps");
        let (mut of_phases, mut all, mut lost) = (Vec::new(), Vec::new(), 0);
        let mut planned = schedule.iter();
        for phase in phases {
            let (before, mut deaths, mut first) = (self.metrics.count(), Vec::new(), 0);
            while deaths.len() < self.args.kills as usize {
                let Some(planned) = planned.next() else { break };
                first += u64::from(planned.rank == 0);
                deaths.extend(self.kill(planned).await?);
            }
            let now = self.metrics.count();
            let missing = (now.missing - before.missing).saturating_sub(WITH_RANK_0 * first);
            let steps_lost = now.twice - before.twice + missing;
            lost += steps_lost;
            all.extend(deaths.iter().map(|death| death.new_step));
            of_phases.push(OfPhase::new(*phase, &deaths, steps_lost));
        }
        Ok(Measured {
            ranks: self.args.workers,
            spare: self.args.spare,
            kills: all.len(),
            kill_to_next_new_step_s: Spread::of(all),
            step_s: Spread::of(self.metrics.step_s.clone()).map_or(0.0, |spread| spread.median),
            steps_lost: lost,
            metrics_lines_missing: self.metrics.count().missing,
            phases: of_phases,
        })
    }

    /// Kills one; what followed, where that is measured.
    async fn kill(&mut self, planned: &Planned) -> Result<Option<Death>, CliError> {
        let pid = self.victim(planned).await?;
        let (killed, instant) = (Timestamp::now(), Instant::now());
        kill_process(pid, Signal::KILL)
            .map_err(|error| CliError::new(1, format!("rank {} cannot be killed: {error}", planned.rank)))?;
        let Some(phase) = planned.measures else { return Ok(None) };
        let reached = self.went_on(killed).await?;
        self.wait_for(reached + 1).await?;
        let new_step = instant.elapsed().as_secs_f64();
        let pid = pid.as_raw_nonzero().get().unsigned_abs();
        let seen = self.seen(pid, killed).await;
        let death = Death { seen, released: self.witnesses.released(killed), new_step };
        let shown = |time: Option<f64>| time.map_or_else(|| "-".to_owned(), |time| format!("{time:.3} s"));
        eprintln!(
            "{phase}: rank {} killed after step {reached}: seen {}, peers released {}, a new step {new_step:.2} s",
            planned.rank,
            shown(death.seen),
            shown(death.released)
        );
        Ok(Some(death))
    }

    /// The process that is to die, which has come to where it is to.
    async fn victim(&mut self, planned: &Planned) -> Result<Pid, CliError> {
        let end = Instant::now() + DEADLINE;
        if planned.at == Phase::Start {
            loop {
                if let Some(pid) = stopped_below(std::process::id()) {
                    return Ok(pid);
                }
                self.go_on(end, "no trainer was started").await?;
            }
        }
        if planned.at == Phase::Any {
            let newest = self.metrics.count().newest;
            self.wait_for(newest + BETWEEN).await?;
            return self.ready(planned).await;
        }
        let pid = self.ready(planned).await?;
        while !is_stopped(pid) {
            self.go_on(end, &format!("rank {} did not come to {}", planned.rank, planned.at)).await?;
        }
        Ok(pid)
    }

    /// The process of a rank of a membership that is complete.
    async fn ready(&mut self, planned: &Planned) -> Result<Pid, CliError> {
        let spares = u32::from(self.args.spare);
        let complete = |status: &JobStatus| {
            status.phase == JobPhase::Running && status.spares >= spares && status.generation.0 == planned.generation
        };
        let mut watch = self.client.watch(&self.job).await?;
        while let Some(status) = watch.next().await? {
            if let JobPhase::Failed { message, .. } = status.phase {
                return Err(CliError::new(1, message));
            }
            if status.generation.0 > planned.generation {
                let failure = status.failures.last().map(|failure| failure.cause.to_string()).unwrap_or_default();
                return Err(CliError::new(1, format!("a trainer died that nobody killed: {failure}")));
            }
            let pid = status.ranks.get(planned.rank as usize).and_then(|found| found.pid);
            if let (true, Some(pid)) = (complete(&status), pid) {
                return Pid::from_raw(pid.cast_signed()).ok_or_else(|| CliError::new(1, "a rank without a process"));
            }
        }
        Err(CliError::new(1, "the job ended"))
    }

    /// After which step the ranks went on.
    async fn went_on(&mut self, killed: Timestamp) -> Result<u64, CliError> {
        let end = Instant::now() + DEADLINE;
        loop {
            match self.witnesses.went_on(killed) {
                Some(step) => return Ok(step),
                None => self.go_on(end, "the ranks did not go on").await?,
            }
        }
    }

    /// When its daemon saw the end of a process.
    async fn seen(&self, pid: u32, killed: Timestamp) -> Option<f64> {
        let end = Instant::now() + TOLD;
        loop {
            match self.witnesses.seen(pid, killed) {
                None if Instant::now() < end => tokio::time::sleep(LOOK).await,
                seen => return seen,
            }
        }
    }

    async fn wait_for(&mut self, step: u64) -> Result<(), CliError> {
        let end = Instant::now() + DEADLINE;
        while self.metrics.count().newest < step {
            self.go_on(end, &format!("step {step} did not come")).await?;
        }
        Ok(())
    }

    /// Looks again soon, unless it has taken too long.
    async fn go_on(&mut self, end: Instant, what: &str) -> Result<(), CliError> {
        if Instant::now() > end {
            let status = self.client.status(&self.job).await?;
            let why = super::super::why::explain(&status).join("\n");
            return Err(CliError::new(1, format!("{what} within {} s\n{why}", DEADLINE.as_secs())));
        }
        tokio::time::sleep(LOOK).await;
        Ok(())
    }
}
