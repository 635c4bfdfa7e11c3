//! What every stage is given: the plan, its peers, and where to report.

use super::{
    commits::Committed, error::TrainerError, failpoints::Failpoints, held::HeldSlot, link::Link, pulse::Pulse,
    trained::TrainedModel,
};
use crate::{
    checkpoint::{CheckpointError, Shelf, Writer},
    collective::Collective,
    data::Dataset,
    storage::Storage,
    supervisor::ipc::Report,
};
use common::{
    ids::{Rank, Step, WorldSize},
    plan::TrainPlan,
    recipe::{DataSet, TextModel},
    status::Progress,
};
use std::{sync::Arc, time::Instant};

/// A stage's surroundings.
pub struct Context<'a> {
    /// What to do.
    pub plan: &'a TrainPlan,
    /// The ranks of this generation.
    pub collective: &'a dyn Collective,
    /// The way to the agent.
    pub link: &'a Link,
    /// What came of this process's checkpoints.
    pub committed: &'a Arc<Committed>,
    /// The thread that writes them.
    pub writer: &'a Writer,
    /// Where tensors live.
    pub device: tch::Device,
    /// CPU threads this trainer may use.
    pub threads: usize,
    /// Faults on purpose.
    pub failpoints: &'a Failpoints,
    /// Where this trainer stands, for its agent to see.
    pub pulse: &'a Pulse,
    /// What of a training is in memory between two memberships.
    pub held: &'a HeldSlot,
    /// Where data and vectors are read from, and checkpoints may be kept.
    pub storage: &'a Arc<Storage>,
    /// The model that was trained before, when the recipe names one; the plan's recipe is completed with it.
    pub trained: Option<&'a TrainedModel>,
}

/// How a stage ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// What there is to say; the lowest rank says it.
    pub summary: Option<serde_json::Value>,
    /// Whether it was stopped before its end.
    pub stopped: bool,
}

impl Context<'_> {
    /// This trainer's rank.
    pub fn rank(&self) -> Rank {
        self.plan.rank
    }

    /// How many ranks there are.
    pub fn world(&self) -> WorldSize {
        self.plan.world()
    }

    /// The kind of the stage, which is its name.
    pub fn stage_kind(&self) -> &'static str {
        self.plan.recipe.stages[self.plan.stage].kind()
    }

    /// Where a stage's checkpoints lie.
    ///
    /// # Errors
    /// When the recipe names no place.
    pub fn shelf(&self, stage: &str) -> Result<Shelf, CheckpointError> {
        Shelf::open(self.storage, self.plan.recipe.checkpoint_root(), stage)
    }

    /// The LLM as this stage finds it.
    ///
    /// # Errors
    /// When the recipe names none.
    pub fn llm(&self) -> Result<TextModel, TrainerError> {
        let (recipe, kind) = (&self.plan.recipe, self.stage_kind());
        recipe.llm_before(self.plan.stage).ok_or_else(|| TrainerError::Plan(format!("`{kind}` needs [model.text]")))
    }

    /// Whether this rank writes what is written once.
    pub fn speaks(&self) -> bool {
        self.rank() == Rank(0)
    }

    /// A report with nothing in it but where the stage stands.
    pub fn progress(&self, step: u64, steps: u64) -> Progress {
        Progress::at(self.plan.generation, self.plan.stage, Step(step), steps)
    }

    /// Says what is being done before steps run.
    pub fn activity(&self, what: &str) {
        tracing::info!(activity = what, "preparing");
        self.report(Progress { activity: Some(what.to_owned()), ..self.progress(0, 0) });
    }

    /// Says how far it is.
    pub fn report(&self, progress: Progress) {
        self.pulse.moved();
        self.link.report(Report::Progress(Box::new(progress)));
    }

    /// Opens data sets of the recipe, in the order given.
    pub fn datasets(&self, names: &[String]) -> Result<Vec<Arc<Dataset>>, TrainerError> {
        let mut opened = Vec::new();
        for name in names {
            let spec = self.plan.recipe.data.get(name).ok_or_else(|| {
                TrainerError::Plan(format!("the plan names data set `{name}`, which its recipe does not have"))
            })?;
            opened.push(self.dataset(name, spec)?);
        }
        Ok(opened)
    }

    /// Opens one data set.
    pub fn dataset(&self, name: &str, spec: &DataSet) -> Result<Arc<Dataset>, TrainerError> {
        self.activity(&format!("indexing data set {name}"));
        let started = Instant::now();
        let dataset = Dataset::open(self.storage, name, spec)?;
        let (skipped, seconds) = (dataset.report().skipped_total(), started.elapsed().as_secs_f64());
        tracing::info!(data = name, samples = dataset.len(), skipped, seconds, "indexed");
        Ok(Arc::new(dataset))
    }
}
