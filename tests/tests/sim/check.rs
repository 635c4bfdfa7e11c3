//! What must hold, looked at whenever something happens that could break it: at every write to the store, every order to a
//! trainer, every moment of a leader, and every tick.
//!
//! | | rule | where |
//! |---|---|---|
//! | I1 | a generation begins once; what it commits goes on from what was committed before | `generation`, `checkpoint` |
//! | I2 | an acknowledged job stays; a recorded checkpoint is whole and durable, and stays so | `tick`, `checkpoint` |
//! | I3 | the steps of a recorded checkpoint are 1 to its own, each once | `Storage::load`, `outcome` |
//! | I4 | no trainer of a job that is over lives on | `run` |
//! | I6 | every restart has an event, and a failure with cause, rank and machine; budgets hold | `restart`, `budget` |
//! | I7 | without faults the job ends | `run` |
//! | I8 | nothing that is merely unknown is taken for dead, or ended | `losses`, `ended_by_order` |
//! | I9 | nobody leads whose key is not in the store, and no write of a deposed leader is made | `leads`, `stored` |
//! | I10 | no trainer is given a lower generation than it had; no slot has two trainers | `ordered`, `World::start` |

use super::{
    storage::Lineage,
    world::{At, World},
};
use common::{
    ids::{Generation, JobId},
    manifest::paths,
    status::{FailureCause, Phase},
};
use coordinator::{
    election::KEY,
    job::{self, JobState, Life},
    store::{Entry, Fence},
};
use proto::leader::Term;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};
use worker::supervisor::ipc::Order;

/// Where jobs are stored.
const JOBS: &str = "/llm2clip/v1/jobs/";
/// For how long nothing must have kept a worker from its coordinators for its loss to be a mistake: what came before may still
/// be on its way.
const QUIET: Duration = Duration::from_secs(45);

/// What is known to be true, and what was violated first.
#[derive(Debug, Default)]
pub struct History {
    /// Jobs that a user was told are taken up.
    pub acknowledged: BTreeSet<JobId>,
    /// A user is to stop the job.
    pub stop_wanted: bool,
    /// How the job ended.
    pub outcome: Option<Phase>,
    /// The folders of jobs.
    pub outputs: BTreeMap<JobId, PathBuf>,
    /// The highest generation that was ever stored.
    begun: BTreeMap<JobId, Generation>,
    /// The state that the newest recorded checkpoint of a stage holds.
    recorded: BTreeMap<(JobId, usize), (PathBuf, Lineage)>,
    /// The highest generation of a plan that each trainer got.
    planned: BTreeMap<At, Generation>,
    violation: Option<String>,
}

impl History {
    /// Notes what was violated; the first counts.
    pub fn violated(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub fn violation(&self) -> Option<&String> {
        self.violation.as_ref()
    }

    /// A job's folder.
    pub fn output(&self, job: &JobId) -> PathBuf {
        self.outputs.get(job).cloned().unwrap_or_default()
    }
}

/// A write is about to be made.
pub fn stored(world: &mut World, fence: Option<&Fence>, before: Option<&Entry>, entry: &Entry) {
    if !entry.key.starts_with(JOBS) {
        return;
    }
    if let Some(fence) = fence
        && world.records.revision_of(KEY) != Some(fence.revision)
    {
        world.history.violated(format!("I9: a leader of term {} wrote {} and is deposed", fence.revision, entry.key));
    }
    let Ok(state) = job::decode(&entry.value) else {
        world.history.violated(format!("{} cannot be read", entry.key));
        return;
    };
    let before = before.and_then(|entry| job::decode(&entry.value).ok());
    generation(world, before.as_ref(), &state);
    checkpoint(world, before.as_ref(), &state);
    losses(world, before.as_ref(), &state);
    budget(world, &state);
    narrate(world, before.as_ref(), &state);
}

fn narrate(world: &mut World, before: Option<&JobState>, state: &JobState) {
    let known = before.map_or(0, |before| before.sequence);
    for event in state.events_after(known) {
        world.say(&format!("{} [{}] {}", state.job, event.kind, event.message));
    }
}

fn generation(world: &mut World, before: Option<&JobState>, state: &JobState) {
    let old = before.map_or(Generation(0), |before| before.generation);
    if state.generation <= old {
        return;
    }
    let begun = world.history.begun.insert(state.job.clone(), state.generation);
    if begun.is_some_and(|begun| begun >= state.generation) {
        world.history.violated(format!("I1: generation {} of {} begins twice", state.generation, state.job));
    }
    if let Some(before) = before.filter(|before| before.generation.0 > 0) {
        restart(world, before, state);
    }
}

/// A generation follows another: something says why.
fn restart(world: &mut World, before: &JobState, state: &JobState) {
    let old = before.generation;
    let told = |kind: &str| state.events.iter().any(|event| event.kind == kind && event.generation == old);
    let failed = told("recovery") || told("restart");
    let reason = failed || ["stage-done", "requeued", "resumed", "growth"].iter().any(|kind| told(kind));
    if !reason {
        world.history.violated(format!("I6: nothing says why generation {old} of {} was followed", state.job));
    }
    let named = state.failures.iter().any(|failure| failure.generation == old && failure.rank.is_some());
    if failed && !named {
        world.history.violated(format!("I6: no failure names the rank that ended generation {old} of {}", state.job));
    }
}

/// A checkpoint is recorded: it is there, and it goes on from the one before.
fn checkpoint(world: &mut World, before: Option<&JobState>, state: &JobState) {
    for (number, stage) in state.stages.iter().enumerate() {
        let old = before.and_then(|before| before.stages.get(number)?.checkpoint);
        let Some(step) = stage.checkpoint.filter(|step| Some(*step) != old) else { continue };
        let kind = state.recipe.stages[number].kind();
        let folder = paths::checkpoint_folder(&state.recipe.output, kind, step);
        let lineage = match world.storage.load(&folder, step) {
            Ok(lineage) => lineage,
            Err(error) => {
                let job = &state.job;
                world.history.violated(format!("I2: {job} records the checkpoint of step {step}, and {error}"));
                return;
            }
        };
        if !world.storage.durable(&folder, world.now) {
            world.history.violated(format!("I2: the recorded checkpoint of step {step} is not durable"));
        }
        let key = (state.job.clone(), number);
        if let Some((_, known)) = world.history.recorded.get(&key)
            && !lineage.starts_with(known)
        {
            world.history.violated(format!(
                "I1: the checkpoint of step {step} does not go on from the one recorded before: {known:?}, then {lineage:?}"
            ));
        }
        world.history.recorded.insert(key, (folder, lineage));
    }
}

/// Whoever counts as gone is.
fn losses(world: &mut World, before: Option<&JobState>, state: &JobState) {
    let known = before.map_or(&[][..], |before| &before.failures);
    let new: Vec<_> = state.failures.iter().filter(|failure| !known.contains(failure)).cloned().collect();
    for failure in new.iter().filter(|failure| failure.cause == FailureCause::WorkerLost) {
        let Some(machine) = world.machines.iter().position(|machine| machine.worker == failure.worker) else {
            continue;
        };
        let quiet = world.machines[machine].quiet_since.map(|since| world.now.saturating_sub(since));
        let lives = failure.pid.is_some_and(|pid| world.machines[machine].processes.contains_key(&pid));
        if lives && quiet.is_some_and(|quiet| quiet > QUIET) {
            let (worker, pid) = (&failure.worker, failure.pid.unwrap_or_default());
            world
                .history
                .violated(format!("I8: {worker} counts as lost, and nothing is wrong with it nor its trainer {pid}"));
        }
    }
    let Some(membership) = &state.membership else { return };
    for member in membership.members.iter().filter(|member| member.ended) {
        let Some(machine) = world.machines.iter().position(|machine| machine.worker == member.place.worker) else {
            continue;
        };
        let lives = member.pid.filter(|pid| world.machines[machine].processes.contains_key(pid));
        let lost = |failure: &common::status::Failure| {
            failure.cause == FailureCause::WorkerLost && failure.worker == member.place.worker
        };
        if let Some(pid) = lives
            && !state.failures.iter().any(lost)
        {
            let place = &member.place;
            world.history.violated(format!("I8: trainer {pid} on {place} counts as ended, and lives"));
        }
    }
}

/// No more restarts than the recipe allows.
fn budget(world: &mut World, state: &JobState) {
    let since = state.events.iter().rposition(|event| event.kind == "resumed").unwrap_or(0);
    let restarts = state.events.iter().skip(since).filter(|event| event.kind == "recovery" || event.kind == "restart");
    let (spent, allowed) = (restarts.count() as u64, u64::from(state.recipe.faults.max_failures));
    if spent > allowed {
        world.history.violated(format!("I6: {} restarted {spent} times, {allowed} are allowed", state.job));
    }
}

/// A coordinator answers as the leader of a term, or as nobody.
pub fn leads(world: &mut World, who: usize, term: Option<Term>) {
    let Some(term) = term else { return };
    let holds = world.records.revision_of(KEY).is_some_and(|revision| revision.0 == term.0);
    if !holds {
        world.history.violated(format!("I9: coordinator {who} leads in term {term}, and the key is not its own"));
    }
}

/// The record of a job, as the store has it now.
pub fn record(world: &World, job: &JobId) -> Option<JobState> {
    job::decode(&world.records.entries.get(&format!("{JOBS}{job}"))?.value).ok()
}

/// An agent hands an order to a trainer.
pub fn ordered(world: &mut World, at: At, order: &Order) {
    let Order::Plan(plan) = order else { return };
    let newest = world.history.planned.get(&at).copied();
    if newest.is_some_and(|newest| plan.generation < newest) {
        world.history.violated(format!("I10: trainer {} is given a plan of generation {}", at.1, plan.generation));
    }
    world.history.planned.insert(at, plan.generation);
    let known = record(world, &plan.job).map(|state| state.generation);
    if known.is_none_or(|known| known < plan.generation) {
        let generation = plan.generation;
        world
            .history
            .violated(format!("I2: a plan of generation {generation} is given out, and the store has {known:?}"));
    }
}

/// An agent ends a trainer: not one that the store's record says is to work.
pub fn ended_by_order(world: &mut World, at: At) {
    let Some(process) = world.process(at) else { return };
    let (job, slot) = (process.job.clone(), process.slot);
    let Some(remembered) = world.machines[at.0].remembered.get(&slot).cloned() else { return };
    let worker = world.machines[at.0].worker.clone();
    let Some(state) = record(world, &job) else { return };
    let working = matches!(state.life, Life::Running | Life::Starting | Life::Stopping);
    let Some(membership) = state.membership.as_ref().filter(|_| working) else { return };
    let here = membership.members.iter().find(|member| member.place.worker == worker && member.place.slot == slot);
    let wanted = here.is_some_and(|member| !member.ended && member.pid == Some(at.1));
    if wanted && remembered.generation == membership.generation {
        let generation = membership.generation;
        world.history.violated(format!("I8: trainer {} of generation {generation} is ended while its job runs", at.1));
    }
}

/// What must hold at any time.
pub fn tick(world: &mut World) {
    let lost = |job: &&JobId| !world.records.entries.contains_key(&format!("{JOBS}{job}"));
    if let Some(job) = world.history.acknowledged.iter().find(lost).cloned() {
        world.history.violated(format!("I2: {job} was acknowledged, and the store has it no more"));
    }
    let broken = world.history.recorded.values().find_map(|(folder, lineage)| {
        let step = common::ids::Step(lineage.len() as u64);
        world.storage.load(folder, step).err()
    });
    if let Some(error) = broken {
        world.history.violated(format!("I2: a recorded checkpoint is damaged: {error}"));
    }
}

/// The job is over: how.
pub fn outcome(world: &mut World, job: &JobId, steps: u64, undisturbed: bool) {
    let Some(state) = record(world, job) else { return };
    match &state.life {
        Life::Succeeded => {
            let last = state.stages.last().and_then(|stage| stage.checkpoint);
            if last.map(|step| step.0) != Some(steps) {
                world.history.violated(format!("I3: {job} succeeded with the checkpoint {last:?} of {steps} steps"));
            }
        }
        Life::Failed { message, .. } if undisturbed => {
            world.history.violated(format!("I8: {job} failed though no trainer was touched: {message}"));
        }
        Life::Failed { message, .. } if message.is_empty() => {
            world.history.violated(format!("I7: {job} failed without a word"));
        }
        Life::Failed { .. } => {}
        life => world.history.violated(format!("{job} is over, and its record says {life:?}")),
    }
    // An ordered end that fell into an agent's restart is told as one of unknown cause.
    let unseen =
        |failure: &&common::status::Failure| !failure.cause.to_string().contains("worker daemon was restarted");
    let first = state.failures.iter().find(unseen);
    if let Some(failure) = first.filter(|_| undisturbed) {
        world.history.violated(format!("I8: {job} lost a trainer though none was touched: {}", failure.cause));
    }
}
