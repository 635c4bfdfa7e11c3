//! A simulated trainer: it obeys plans, carries out steps together with its peers, writes checkpoints, and says what the real
//! one says, when the real one says it (`worker/src/trainer/{session,link,commits,held}.rs`).

use super::storage::Lineage;
use common::{
    ids::{Generation, JobId, Slot, Step},
    manifest::Manifest,
    plan::TrainPlan,
    recipe::Stage,
};
use std::{collections::VecDeque, time::Duration};
use worker::supervisor::ipc::{Order, Report};

/// How long a trainer goes on without an agent.
pub const LEASE: Duration = Duration::from_secs(30);
/// How many reports are kept.
const KEPT: usize = 64;
/// Steps of a stage that does not train.
const PLAIN_STEPS: u64 = 4;

/// A process.
#[derive(Debug)]
pub struct Process {
    pub pid: u32,
    pub slot: Slot,
    pub job: JobId,
    /// Where its peers reach it: `machine:pid`.
    pub peer: String,
    pub phase: Phase,
    /// What it holds of a training that was broken off: the stage, and what was carried out.
    pub held: Option<(usize, Lineage)>,
    /// Writes that are not durable yet.
    pub writes: Vec<Write>,
    /// The newest checkpoint that this process committed under the present plan.
    pub committed: Option<Step>,
    /// Orders to commit under way: when they are done.
    pub commits: Vec<(Duration, Step, Box<Manifest>)>,
    pub signals: Signals,
    pub link: Link,
}

/// What it does.
#[derive(Debug)]
pub enum Phase {
    /// It starts.
    Booting { until: Duration },
    /// It waits for a plan.
    Idle,
    /// It looks for its peers.
    Joining { plan: Box<TrainPlan>, since: Duration },
    /// It works with them.
    Working(Work),
}

/// A stage that runs.
#[derive(Debug)]
pub struct Work {
    pub plan: Box<TrainPlan>,
    /// What was carried out; of a stage that does not train, too.
    pub done: Lineage,
    pub steps: u64,
    /// When the next step is carried out here; absent while the ranks compute it.
    pub apply_at: Option<Duration>,
    /// When all ranks have computed the next step.
    pub computed_at: Duration,
    /// All ranks are to stop after the step at hand.
    pub stopping: bool,
    /// The newest checkpoint that this rank has begun to write.
    pub written: Option<Step>,
    /// Since when it waits for its last checkpoint's commit.
    pub waits: Option<Duration>,
    /// Since when a peer does not answer.
    pub silent: Option<Duration>,
}

/// A share of a checkpoint on its way to storage.
#[derive(Debug)]
pub struct Write {
    pub report: Report,
    pub durable_at: Duration,
}

/// What was sent to it.
#[derive(Debug, Default)]
pub struct Signals {
    /// It ends of SIGTERM then.
    pub term_at: Option<Duration>,
    /// The supervisor's SIGKILL comes then.
    pub kill_at: Option<Duration>,
    /// It does not heed SIGTERM.
    pub deaf: bool,
}

/// The way to its agent.
#[derive(Debug, Default)]
pub struct Link {
    /// Since when there is no agent.
    pub gone_since: Option<Duration>,
    /// No agent came for a lease: it is about to end.
    pub lapsed: bool,
    plan: Option<Box<TrainPlan>>,
    newest: Option<Generation>,
    running: Option<Generation>,
    stop: Option<Generation>,
    pub manifests: VecDeque<(Step, Box<Manifest>)>,
    kept: VecDeque<(Report, bool)>,
    pub progress_at: Duration,
}

impl Link {
    /// Takes an order, as the real trainer's inbox does. False when it was refused as one of an ended membership.
    pub fn take(&mut self, order: Order) -> bool {
        match order {
            Order::Plan(plan) if Some(plan.generation) == self.newest => {}
            Order::Plan(plan) if self.newest.is_some_and(|newest| plan.generation < newest) => return false,
            Order::Plan(plan) => {
                self.newest = Some(plan.generation);
                self.plan = Some(plan);
            }
            Order::Stop => self.stop = self.newest,
            Order::CommitManifest { step, manifest } => self.manifests.push_back((step, manifest)),
        }
        true
    }

    /// The plan that waits, which from now on runs.
    pub fn next_plan(&mut self) -> Option<Box<TrainPlan>> {
        let plan = self.plan.take()?;
        self.running = Some(plan.generation);
        let present = plan.generation;
        self.kept.retain(|(report, written)| !written || repeated(report) == Some(present));
        Some(plan)
    }

    /// The plan that waits behind the one that runs; absent when none does.
    pub fn waiting(&self) -> Option<&TrainPlan> {
        self.plan.as_deref().filter(|_| self.running.is_some())
    }

    /// The plan that runs; absent before the first.
    pub fn running(&self) -> Option<Generation> {
        self.running
    }

    /// Whether the stage that runs is to end.
    pub fn stops(&self) -> bool {
        self.lapsed || (self.running.is_some() && self.running <= self.stop)
    }

    /// Takes a report; what is to be written now comes back from [`Link::unwritten`].
    pub fn report(&mut self, report: Report) {
        if self.kept.len() >= KEPT {
            let written = self.kept.iter().position(|(_, written)| *written);
            self.kept.remove(written.unwrap_or(0));
        }
        self.kept.push_back((report, false));
    }

    /// A new connection: whatever the agent may not have seen is written again.
    pub fn connected(&mut self) {
        self.gone_since = None;
        self.kept.iter_mut().for_each(|(_, written)| *written = false);
    }

    /// How many reports are kept.
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// What an agent that is there gets now.
    pub fn unwritten(&mut self) -> Vec<Report> {
        let waits: Vec<Report> = self.kept.iter().filter(|(_, written)| !written).map(|(r, _)| r.clone()).collect();
        self.kept.iter_mut().for_each(|(_, written)| *written = true);
        self.kept.retain(|(report, _)| repeated(report).is_some());
        waits
    }
}

fn repeated(report: &Report) -> Option<Generation> {
    match report {
        Report::CheckpointWritten { generation, .. }
        | Report::CheckpointCommitted { generation, .. }
        | Report::PeersLost { generation, .. }
        | Report::StorageTrouble { generation, .. }
        | Report::StageFinished { generation, .. } => Some(*generation),
        Report::Hello { .. } | Report::Progress(_) | Report::Failed { .. } => None,
    }
}

impl Process {
    /// The plan it works on, or looks for its peers with.
    pub fn plan(&self) -> Option<&TrainPlan> {
        match &self.phase {
            Phase::Joining { plan, .. } => Some(plan),
            Phase::Working(work) => Some(&work.plan),
            Phase::Booting { .. } | Phase::Idle => None,
        }
    }

    /// What it says first to every agent.
    pub fn hello(&self) -> Option<Report> {
        let said = !matches!(self.phase, Phase::Booting { .. });
        let hello = Report::Hello { pid: self.pid, peer: self.peer.clone(), generation: self.link.running() };
        said.then_some(hello)
    }
}

/// Whether a plan's stage is one that trains, and of how many steps.
pub fn stage_of(plan: &TrainPlan) -> (bool, u64) {
    let stage: &Stage = &plan.recipe.stages[plan.stage];
    match stage.training() {
        Some(training) => match training.length {
            common::recipe::Length::Steps(steps) => (true, steps),
            _ => (true, 1),
        },
        None => (false, PLAIN_STEPS),
    }
}
