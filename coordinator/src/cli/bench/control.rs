//! `bench control`: a coordinator under many workers.

use super::{
    super::{
        error::CliError,
        output::{self, Format},
    },
    figures::{Figures, Quantiles},
    fleet::Fleet,
    process::Server,
};
use common::{ids::JobId, recipe::Recipe};
use proto::v1::{JobRequest, SubmitRequest, jobs_client::JobsClient};
use std::{path::Path, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tonic::transport::Channel;

/// How long all workers may take to register, and the job to run.
const SET_UP: Duration = Duration::from_secs(180);
/// How often a request of a user is timed.
const PROBE: Duration = Duration::from_millis(50);
/// How long a request of a user may take.
const REQUEST: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A coordinator of its own (`llm2clip serve`, embedded store) and so many simulated workers, over gRPC on loopback: \
        up to 100 sessions share a connection. Every worker sends a heartbeat three times a lease; one of them dies each second \
        and is back 20 s later, and from time to time one on which the job runs."
)]
pub(super) struct ControlArgs {
    /// How many workers
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..=100_000), value_name = "N")]
    workers: u32,
    /// With how many ranks a job runs over them
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N")]
    ranks: u32,
    /// For how many seconds it is measured
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(5..=86_400), value_name = "SECONDS")]
    seconds: u64,
    /// Every so many seconds one of the job's own workers dies
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(5..=3600), value_name = "SECONDS")]
    strike: u64,
}

/// Runs the bench.
pub(super) async fn measure(control: &ControlArgs, format: Format) -> Result<u8, CliError> {
    if control.ranks >= control.workers {
        return Err(CliError::usage(format!(
            "--ranks {} needs more workers than the {} of --workers: each has one place, and some die",
            control.ranks, control.workers
        )));
    }
    let figures = figures(control).await?;
    match format {
        Format::Json => output::print_json(None, &figures),
        Format::Text => figures.lines().iter().for_each(|line| println!("{line}")),
    }
    Ok(0)
}

async fn figures(args: &ControlArgs) -> Result<Figures, CliError> {
    let folder = tempfile::tempdir().map_err(|error| CliError::new(1, format!("no folder for the bench: {error}")))?;
    let server = Server::start(&folder.path().join("state")).await?;
    eprintln!("a coordinator is up at {}; {} workers register", server.url(), args.workers);
    let began = Instant::now();
    let fleet = Fleet::start(server.url(), args.workers).await?;
    fleet.until(SET_UP, "all workers are registered", |seen| seen.registered >= args.workers).await?;
    let registered_s = began.elapsed().as_secs_f64();
    let mut jobs = JobsClient::connect(server.url().to_owned()).await.map_err(CliError::contact)?;
    let job = submit(&mut jobs, &folder.path().join("output"), args.ranks).await?;
    fleet.until(SET_UP, "the job runs", |seen| seen.planned >= args.ranks).await?;
    eprintln!("they are registered after {registered_s:.1} s and {job} runs; measuring for {} s", args.seconds);
    let before = server.usage()?;
    let heartbeats = fleet.heartbeats();
    let run = Run { fleet: &fleet, args, server: &server };
    let (latencies, memory) = run.strikes_and_probes(&mut jobs, &job).await?;
    let after = server.usage()?;
    let (plans, deaths) = fleet.plans_after_deaths();
    let wall = args.seconds as f64;
    Ok(Figures {
        workers: args.workers,
        ranks: args.ranks,
        connections: fleet.connections(),
        seconds: wall,
        registered_s,
        heartbeats_per_s: (fleet.heartbeats() - heartbeats) as f64 / wall,
        deaths,
        cpu_share_of_one_core: (after.cpu_s - before.cpu_s) / wall,
        status_rpc_s: Quantiles::of(latencies),
        resident_bytes: after.resident_bytes,
        resident_growth_bytes: growth(&memory),
        death_to_plan_s: Quantiles::of(plans),
        lease_s: fleet.lease().as_secs_f64(),
    })
}

/// By how much the memory is larger in the last quarter than in the second one: what is set up at the beginning is no growth.
fn growth(memory: &[u64]) -> i64 {
    let quarter = memory.len() / 4;
    let mean = |part: &[u64]| if part.is_empty() { 0 } else { part.iter().sum::<u64>() / part.len() as u64 };
    mean(&memory[memory.len() - quarter..]).cast_signed() - mean(&memory[quarter..2 * quarter]).cast_signed()
}

struct Run<'a> {
    fleet: &'a Fleet,
    args: &'a ControlArgs,
    server: &'a Server,
}

impl Run<'_> {
    /// Lets workers die and times requests of a user until the time is over: latencies, and the memory each second.
    async fn strikes_and_probes(
        &self,
        jobs: &mut JobsClient<Channel>,
        job: &JobId,
    ) -> Result<(Vec<f64>, Vec<u64>), CliError> {
        let began = Instant::now();
        let (mut seconds, mut probes) = (interval(Duration::from_secs(1)), interval(PROBE));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut latencies, mut memory, mut second) = (Vec::new(), Vec::new(), 0);
        while began.elapsed() < Duration::from_secs(self.args.seconds) {
            tokio::select! {
                _ = seconds.tick() => {
                    second += 1;
                    memory.push(self.server.usage()?.resident_bytes);
                    if second % self.args.strike == 0 { self.fleet.strike_a_rank() } else { self.fleet.strike_another() }
                }
                _ = probes.tick() => {
                    let asked = Instant::now();
                    let request = JobRequest { job: job.to_string() };
                    match timeout(REQUEST, jobs.status(request)).await {
                        Ok(Ok(_)) => latencies.push(asked.elapsed().as_secs_f64()),
                        Ok(Err(status)) => return Err(status.into()),
                        Err(_) => latencies.push(REQUEST.as_secs_f64()),
                    }
                }
            }
        }
        // What died last gets its plan after the measurement.
        sleep(Duration::from_secs(1)).await;
        Ok((latencies, memory))
    }
}

async fn submit(jobs: &mut JobsClient<Channel>, output: &Path, ranks: u32) -> Result<JobId, CliError> {
    let recipe = serde_json::to_string(&recipe(output)?).expect("a recipe is JSON");
    let job: JobId = "bench-control".parse().expect("it is a name");
    jobs.submit(SubmitRequest { recipe, world_size: ranks, job: job.to_string() }).await?;
    Ok(job)
}

/// A job of one stage that trains for ever.
fn recipe(output: &Path) -> Result<Recipe, CliError> {
    let recipe = serde_json::json!({
        "name": "bench", "seed": 7, "output": output, "data": {},
        "model": {"text": null, "vision": null, "adapter": null},
        "stages": [
            {"kind": "clip", "data": ["d"], "global_batch": 32768, "chunk": 64, "length": {"steps": 1_000_000},
             "precision": "bf16", "augment": {"scale": [0.9, 1.0], "ratio": [0.75, 1.33]},
             "optimizer": {"learning_rate": 1e-3, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.05,
                           "clip_norm": 1.0, "layer_decay": 1.0},
             "schedule": {"warmup_steps": 2}, "checkpoint": {"every_steps": 1000, "keep": 2}, "logit_scale_init": 2.6592}
        ],
        "faults": {"max_failures": 1_000_000, "max_no_progress": 1_000_000}
    });
    serde_json::from_value(recipe).map_err(|error| CliError::new(1, format!("the bench's own recipe: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipe_is_one_and_growth_is_what_comes_after_the_set_up() {
        assert_eq!(recipe(Path::new("/o")).unwrap().stages.len(), 1);
        assert_eq!(growth(&[1, 5, 9, 9, 9, 9, 9, 9]), 0);
        assert_eq!(growth(&[1, 5, 9, 9, 10, 10, 12, 14]), 4);
        assert_eq!(growth(&[]), 0);
    }
}
