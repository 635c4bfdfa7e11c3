//! The life of a trainer process: connect to the agent, then plan after plan until there is none.

use super::{
    commits::{Committed, Obedience},
    context::{Context, Outcome},
    error::TrainerError,
    failpoints::{self, Failpoints, Point},
    folders,
    held::HeldSlot,
    link::Link,
    observed::Observed,
    pulse::Pulse,
    stages,
    trained::TrainedModel,
};
use crate::{
    checkpoint::{Faults, Watch, Writer},
    collective::{self, Collective, Deadlines, Identity},
    storage::{Limits, Storage},
    supervisor::ipc::Report,
    torch::cuda::{DEVICE_VARIABLE, DeviceChoice},
};
use common::{plan::TrainPlan, pulse::Doing, recipe::Stage};
use std::{
    net::TcpListener,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// How long the peers of a generation have to come together, and an operation to end: longer than the slowest rank's
/// batch.
const DEADLINES: Deadlines = Deadlines { join: Duration::from_secs(60), operation: Duration::from_secs(180) };
/// How long a last report may take to reach the agent.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);

/// How a trainer is started.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The agent's socket
    #[arg(long)]
    pub socket: PathBuf,
    /// CPU threads to compute with
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Place on the worker, from 0
    #[arg(long, default_value_t = 0)]
    pub slot: u32,
    /// The membership that it is started for
    #[arg(long, default_value_t = 0)]
    pub generation: u64,
    /// Where to compute: cpu, cuda, cuda:N, or auto: on GPU `slot` modulo their number when there is one
    #[arg(long, default_value = "auto", env = DEVICE_VARIABLE)]
    pub device: DeviceChoice,
    /// Address or name of this machine under which its peers reach it
    #[arg(long, default_value = "127.0.0.1")]
    pub peer_host: String,
    /// Seconds without an agent after which the trainer writes a checkpoint and ends
    #[arg(long, default_value_t = 30)]
    pub lease_s: u64,
    /// The agent's file in which this trainer notes where it stands
    #[arg(long)]
    pub pulse: Option<PathBuf>,
}

/// Runs plans until the agent has no more.
///
/// # Errors
/// The first error of a stage, after the agent and the peers were told.
pub fn run(args: &RunArgs) -> Result<(), TrainerError> {
    let failpoints = failpoints()?;
    // Nothing is asked of the caller there.
    let _ = failpoints.hit(Point::Start, args.generation);
    // Before anything else of libtorch: it looks for CUDA once.
    let device = args.device.choose(args.slot).map_err(TrainerError::Plan)?;
    tracing::info!(?device, "computing");
    tch::set_num_threads(i32::try_from(args.threads).unwrap_or(i32::MAX));
    let listener = listen(&args.peer_host)?;
    let port = listener.local_addr().map_err(|source| bind_error(&args.peer_host, source))?.port();
    let link = Link::connect(&args.socket, format!("{}:{port}", args.peer_host), Duration::from_secs(args.lease_s))?;
    let current = Arc::new(Mutex::new(None));
    let committed = Arc::new(Committed::default());
    // It outlives plans: storage that hangs holds up no membership, and no end.
    let writer = Writer::start(Watch::new(Faults::from_environment().map_err(TrainerError::Plan)?));
    let storage = Arc::new(Storage::from_environment(Limits::default()));
    let orders = Obedience {
        link: link.clone(),
        plan: current.clone(),
        committed: committed.clone(),
        writer: writer.clone(),
        storage: storage.clone(),
    };
    std::thread::spawn(move || orders.run());
    let pulse = args.pulse.as_deref().map(Pulse::open).transpose().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot note where this trainer stands: the agent will not see that it is stuck");
        None
    });
    let pulse = pulse.unwrap_or_default();
    let held = HeldSlot::default();
    while let Some(plan) = link.next_plan()? {
        committed.reset(plan.generation);
        held.keep_only(plan.stage);
        pulse.begin(plan.generation);
        *current.lock().unwrap_or_else(PoisonError::into_inner) = Some(plan.clone());
        let surroundings = Surroundings {
            link: &link,
            committed: &committed,
            writer: &writer,
            failpoints: &failpoints,
            pulse: &pulse,
            held: &held,
            storage: &storage,
            device,
            threads: args.threads,
        };
        let result = run_plan(&plan, &listener, &surroundings);
        pulse.doing(Doing::Idle);
        if let Err(error) = result {
            if error.is_of_peers() {
                tracing::warn!(%error, "the membership is over; waits for the next one");
                if !link.is_superseded() {
                    let (generation, rank, step, message) =
                        (plan.generation, plan.rank, held.step(), error.to_string());
                    link.report(Report::PeersLost { generation, rank, step, message });
                }
                continue;
            }
            tracing::error!(%error, "the stage failed");
            let (message, cause) = (error.to_string(), error.cause());
            link.report(Report::Failed { generation: Some(plan.generation), message, cause });
            link.flush(FLUSH_DEADLINE);
            return Err(error);
        }
    }
    link.flush(FLUSH_DEADLINE);
    Ok(())
}

fn listen(host: &str) -> Result<TcpListener, TrainerError> {
    TcpListener::bind((host, 0)).map_err(|source| bind_error(host, source))
}

fn bind_error(host: &str, source: std::io::Error) -> TrainerError {
    TrainerError::Plan(format!(
        "cannot listen for peers on {host}: {source}; set the worker's --peer-host to an address of this machine"
    ))
}

fn failpoints() -> Result<Failpoints, TrainerError> {
    let text = std::env::var(failpoints::VARIABLE).unwrap_or_default();
    text.parse().map_err(TrainerError::Plan)
}

/// What outlives a plan.
struct Surroundings<'a> {
    link: &'a Link,
    committed: &'a Arc<Committed>,
    writer: &'a Writer,
    failpoints: &'a Failpoints,
    pulse: &'a Pulse,
    held: &'a HeldSlot,
    storage: &'a Arc<Storage>,
    device: tch::Device,
    threads: usize,
}

fn run_plan(plan: &TrainPlan, listener: &TcpListener, around: &Surroundings<'_>) -> Result<(), TrainerError> {
    if plan.schema != 1 {
        return Err(TrainerError::Plan(format!(
            "this trainer reads plans of schema 1, not {}: update it",
            plan.schema
        )));
    }
    let stage = plan.recipe.stages.get(plan.stage).ok_or_else(|| {
        TrainerError::Plan(format!("the plan names stage {}, its recipe has {}", plan.stage, plan.recipe.stages.len()))
    })?;
    let span = tracing::info_span!("stage", kind = stage.kind(), generation = plan.generation.0, rank = plan.rank.0);
    let _entered = span.enter();
    tracing::info!(world = plan.world().0, "started");
    let identity = Identity { generation: plan.generation, rank: plan.rank, peers: plan.peers.clone() };
    let Surroundings { link, committed, writer, pulse, held, storage, device, threads, .. } = *around;
    let failpoints = &around.failpoints.of(plan.rank, plan.generation);
    let interrupt = link.interrupt();
    let in_vain = || interrupt.is_asked();
    let joined = collective::join_unless(listener, identity, DEADLINES, device, &in_vain)?;
    let collective: Arc<dyn Collective> = Arc::new(Observed::new(joined, pulse.clone(), failpoints.clone()));
    interrupt.watch(&collective);
    let result = with_model(plan, storage, |plan, trained| {
        folders::check(&plan.recipe, plan.stage, trained.is_some())?;
        let stage = &plan.recipe.stages[plan.stage];
        let context = Context {
            plan,
            collective: collective.as_ref(),
            link,
            committed,
            writer,
            device,
            threads,
            failpoints,
            pulse,
            held,
            storage,
            trained,
        };
        run_stage(stage, context)
    });
    let outcome = match result.and_then(|outcome| Ok(collective.barrier().map(|()| outcome)?)) {
        Ok(outcome) => outcome,
        Err(error) => {
            collective.abort(&error.to_string());
            return Err(error);
        }
    };
    finish(plan, link, outcome);
    Ok(())
}

/// Runs a plan's stage with the model that its recipe names, if it names one; the recipe is completed with it.
fn with_model(
    plan: &TrainPlan,
    storage: &Arc<Storage>,
    run: impl FnOnce(&TrainPlan, Option<&TrainedModel>) -> Result<Outcome, TrainerError>,
) -> Result<Outcome, TrainerError> {
    let Some(spec) = &plan.recipe.model.trained else { return run(plan, None) };
    let (trained, mut plan) = (TrainedModel::open(storage, spec)?, plan.clone());
    trained.complete(&mut plan.recipe)?;
    run(&plan, Some(&trained))
}

fn run_stage(stage: &Stage, mut context: Context<'_>) -> Result<Outcome, TrainerError> {
    match stage {
        Stage::Mntp(stage) => stages::mntp::run(stage, &mut context),
        Stage::Contrast(stage) => stages::contrast::run(stage, &mut context),
        Stage::Embed(stage) => stages::embed::run(stage, &mut context),
        Stage::Distill(stage) => stages::distill::run(stage, &mut context),
        Stage::Clip(stage) => stages::clip::run(stage, &mut context),
        Stage::Eval(stage) => stages::eval::run(stage, &mut context),
        Stage::Export => stages::export::run(&context),
    }
}

fn finish(plan: &TrainPlan, link: &Link, outcome: Outcome) {
    tracing::info!(stopped = outcome.stopped, "finished");
    let summary = if plan.rank.0 == 0 { outcome.summary } else { None };
    let (generation, rank, stopped) = (plan.generation, plan.rank, outcome.stopped);
    link.report(Report::StageFinished { generation, rank, summary, stopped });
}
