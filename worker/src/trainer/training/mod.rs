//! The loop of every stage that trains: batch after batch, a step, what is said of it, a checkpoint now and then, until the
//! end or until somebody asks to stop. What a batch and a step are, the stage's [`Task`] knows.

mod broken;
mod evaluations;
mod ledger;
mod replicas;
mod resume;
mod saving;
mod tally;

use crate::{
    collective::{Collective, CollectiveError},
    data::{BrokenLimit, BrokenSample},
    export::recipe_file,
    objective::Repeats,
    trainer::{
        agreement,
        context::{Context, Outcome},
        error::TrainerError,
        failpoints::{Fault, Point},
        held::Held,
        parameters::FlatParameters,
        schedule,
        step::{Cut, LossSettings, StepBegun, StepSettings},
        timeline::{Section, Timeline},
    },
};
use broken::BrokenFile;
use common::{
    ids::Step,
    manifest::{DataCursor, paths},
    pulse::Doing,
    recipe,
    sampler::{self, Order},
    status::{Evaluated, Progress},
};
use evaluations::Evaluations;
use ledger::{Begun, Ledger};
use resume::From;
use saving::Saving;
use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};
use tally::Tally;

/// A data set of a training.
#[derive(Debug, Clone)]
pub struct Source {
    /// How many of its samples may be broken.
    pub limit: BrokenLimit,
    /// BLAKE3 in hex of all that orders and describes its samples.
    pub fingerprint: String,
}

/// What a stage does with the loop's steps.
pub trait Task {
    /// What a step is taken on: this rank's part of a global batch.
    type Batch;

    /// The next batch, made ahead of the training; absent when there is none, which is an error.
    fn next(&mut self) -> Option<Result<Self::Batch, TrainerError>>;

    /// How long [`Task::next`] waited so far.
    fn waited(&self) -> Duration;

    /// What of a batch was broken.
    fn broken<'b>(&self, batch: &'b Self::Batch) -> &'b [BrokenSample];

    /// Whether [`Task::evaluate`] is to see the average of what is trained in its place.
    fn evaluates_average(&self) -> bool {
        false
    }

    /// Begins the optimizer step on a batch.
    ///
    /// # Errors
    /// When a peer fails, or libtorch refuses.
    fn step(&mut self, batch: &Self::Batch, taken: Taken<'_>) -> Result<StepBegun, TrainerError>;

    /// Floating-point operations of a batch's forward and backward passes; what recomputation adds does not count.
    fn flops(&self, batch: &Self::Batch) -> f64;

    /// Whether the weights are to be evaluated after so many steps, in this order of samples: the same on every rank.
    fn evaluates_after(&self, _step: Step, _order: &Order) -> bool {
        false
    }

    /// Evaluates the weights as they are, all ranks together; no later step is another for it. `standing` is where the
    /// training stands.
    ///
    /// # Errors
    /// When a peer fails, or too much of the data is broken.
    fn evaluate(&self, _standing: &Progress) -> Result<Vec<Evaluated>, TrainerError> {
        Ok(Vec::new())
    }
}

/// What a step is taken with.
pub struct Taken<'a> {
    /// How many steps were before it.
    pub step: Step,
    /// This rank's slots, chunk by chunk.
    pub chunks: &'a [Range<u64>],
    /// Their sizes, and what stands in the batch twice.
    pub cut: Cut<'a>,
    /// Of the optimizer and the loss.
    pub settings: StepSettings,
    /// The ranks.
    pub collective: &'a dyn Collective,
    /// What is trained.
    pub parameters: &'a mut FlatParameters,
    /// Whether what is made of the batch is to be NaN: a fault on purpose.
    pub poisoned: bool,
    /// Where the time goes; the wait for the batch is in it.
    pub timeline: Timeline,
}

/// A training on its way.
pub struct Training<'a, 'b> {
    settings: &'a recipe::Training,
    context: &'a Context<'b>,
    sources: Vec<Source>,
    parameters: FlatParameters,
    cursor: DataCursor,
    order: Arc<Order>,
    total: u64,
    /// Steps that were begun.
    step: u64,
    /// Steps that are known to be carried out.
    carried_out: u64,
    slots: Range<u64>,
    rows: Vec<i64>,
}

impl<'a, 'b> Training<'a, 'b> {
    /// A training from its beginning, or from the plan's checkpoint; every rank has the same parameters then. `order` is
    /// over `sources`.
    ///
    /// # Errors
    /// When the checkpoint is of something else, a peer fails, or there are more ranks than samples in a batch.
    pub fn prepare(
        settings: &'a recipe::Training,
        context: &'a Context<'b>,
        sources: Vec<Source>,
        mut order: Order,
        mut parameters: FlatParameters,
    ) -> Result<Self, TrainerError> {
        let total = settings.length.steps(&order);
        if settings.optimizer.sharded && context.world().0 > 1 {
            parameters.shard(context.collective);
        }
        let mut cursor = cursor(&order, &sources);
        context.failpoints.pass(Point::Load);
        let held = context.held.take(context.plan.stage);
        let mut begin = || {
            let from = resume::choose(context, held.as_ref())?;
            if let Some((manifest, weights)) = from.manifest(context)? {
                let resumed = manifest.data.resume(&cursor, weights);
                order = resumed.map_err(|error| TrainerError::Plan(error.to_string()))?;
                cursor = self::cursor(&order, &sources);
            }
            restore(context, &mut parameters, held.as_ref(), &from)
        };
        let step = match begin() {
            Ok(step) => step,
            Err(error) => {
                // Another peer was lost on the way: what this rank holds is for the membership after this one.
                if let Some(held) = held.filter(|_| error.is_of_peers()) {
                    context.held.put(held);
                }
                return Err(error);
            }
        };
        let (world, batch) = (context.world(), settings.global_batch);
        if u64::from(world.0) > batch {
            return Err(TrainerError::Plan(format!(
                "a global batch of {batch} cannot be shared by {world} ranks: run with fewer, or raise `global_batch`"
            )));
        }
        let slots = sampler::local_slots(context.rank(), world, batch);
        let rows = sampler::rows(world, batch).into_iter().map(|n| n as i64).collect();
        let order = Arc::new(order);
        Ok(Self { settings, context, sources, parameters, cursor, order, total, step, carried_out: step, slots, rows })
    }

    /// The order of samples.
    pub fn order(&self) -> &Arc<Order> {
        &self.order
    }

    /// The steps that are to be taken.
    pub fn steps(&self) -> Range<u64> {
        self.step..self.total
    }

    /// This rank's slots of each global batch.
    pub fn slots(&self) -> Range<u64> {
        self.slots.clone()
    }

    /// Takes all steps. What is trained stands in the variables afterwards.
    ///
    /// # Errors
    /// When a peer, the device or storage fails, the loss is no number, or too much of the data is broken.
    pub fn run<T: Task>(&mut self, task: &mut T) -> Result<Outcome, TrainerError> {
        let mut ledger = Ledger::open(self)?;
        // A step's figures are read while the next one is computed.
        let mut begun = None;
        let result = self.take_all(task, &mut ledger, &mut begun);
        match &result {
            Err(error) if error.is_of_peers() => {
                self.hold(&mut ledger, begun, matches!(error, TrainerError::Superseded))?
            }
            Err(_) => {}
            // A membership may begin while the others say that they have finished.
            Ok(_) if !self.parameters.is_sharded() => self.context.held.put(self.held()?),
            Ok(_) => {}
        }
        result
    }

    fn held(&self) -> Result<Held, CollectiveError> {
        Held::of(self.context.plan.stage, Step(self.carried_out), &self.parameters)
    }

    /// Keeps what this rank has for the membership after this one. `together` says that all ranks do so, after the same step.
    fn hold(&mut self, ledger: &mut Ledger, begun: Option<Begun>, together: bool) -> Result<(), TrainerError> {
        // On a GPU it may have been begun and not carried out.
        if let Err(error) = self.settle(ledger, begun) {
            tracing::info!(%error, "the newest step was not carried out");
        }
        let step = Step(self.carried_out);
        let held = match (self.parameters.is_sharded(), together) {
            (false, _) => self.held()?,
            (true, true) => Held::gathered(self.context.plan.stage, step, &self.parameters, self.context.collective)?,
            // Of sharded moments the lost rank's share is lost.
            (true, false) => return Ok(()),
        };
        self.context.held.put(held);
        tracing::warn!(step = step.0, "waits for the next membership with the state in memory");
        Ok(())
    }

    fn take_all<T: Task>(
        &mut self,
        task: &mut T,
        ledger: &mut Ledger,
        begun: &mut Option<Begun>,
    ) -> Result<Outcome, TrainerError> {
        let mut evaluations = Evaluations::open(self)?;
        // The run before may have ended between a step and what was to be measured after it.
        evaluations.make_up(self, task, ledger)?;
        let (mut broken, mut tally) = (BrokenFile::default(), Tally::new(self.sources.len()));
        let mut saving = Saving::new(self)?;
        let (mut stopped, first) = (false, self.step + 1);
        while self.step < self.total && !stopped {
            let pulse = self.context.pulse;
            pulse.step(self.step + 1);
            let mut timeline = Timeline::begin(self.context.device);
            let waited = task.waited();
            let ended = || TrainerError::Plan("the loader ended before the stage".to_owned());
            let batch = task.next().ok_or_else(ended)??;
            let data_wait = task.waited().saturating_sub(waited);
            timeline.lap(Section::DataWait);
            pulse.doing(Doing::Computing);
            broken.write(self, Step(self.step + 1), task.broken(&batch))?;
            let poisoned = self.fail_on_purpose();
            let learning_rate = self.learning_rate();
            let flops = task.flops(&batch);
            let output = self.take_step(task, (&batch, poisoned), learning_rate, timeline)?;
            self.step += 1;
            let this = Begun { step: Step(self.step), output, learning_rate, data_wait, flops };
            self.settle(ledger, begun.replace(this))?;
            let counts;
            let superseded;
            let telling = Instant::now();
            (stopped, superseded, counts) = self.tell_peers(task.broken(&batch), &mut saving)?;
            ledger.agreed(telling.elapsed());
            ledger.skipped(counts.iter().sum::<i64>().cast_unsigned());
            tally.add(&self.order.epochs(Step(self.step - 1)), &counts);
            for (source, count) in self.sources.iter().zip(tally.most()) {
                source.limit.bear(count, broken.examples(&source.limit.name))?;
            }
            pulse.stepped();
            if self.step == first {
                // Who waits to see whether this membership goes on is told at once.
                self.settle(ledger, begun.take())?;
            }
            if superseded {
                self.settle(ledger, begun.take())?;
                return Err(TrainerError::Superseded);
            }
            if !stopped && task.evaluates_after(Step(self.step), &self.order) {
                self.settle(ledger, begun.take())?;
                pulse.doing(Doing::Evaluating);
                // Before the checkpoint of this step: whoever goes on from there has the figures.
                evaluations.take(self, task, ledger)?;
            }
            let due = self.step.is_multiple_of(self.settings.checkpoint.every_steps);
            let last = self.step == self.total || stopped;
            if due || last || self.compares_after(self.step) {
                self.settle(ledger, begun.take())?;
                ledger.compared(self.compare()?);
            }
            if due && !last {
                // What is saved is known to be sound, and the same on all ranks.
                pulse.doing(Doing::SavingCheckpoint);
                ledger.stalled(saving.save(self)?);
            }
        }
        self.settle(ledger, begun.take())?;
        // Also where the membership before ended between the last step and its checkpoint.
        if self.step >= first || !self.is_saved()? {
            self.context.pulse.doing(Doing::SavingCheckpoint);
            ledger.stalled(saving.save_last(self)?);
        }
        Ok(Outcome { summary: (!stopped).then(|| ledger.summary(self)), stopped })
    }

    /// Whether the step that this membership began with, and took none after, is on storage: where the plan goes on from, or what the
    /// membership before saved of what a rank held. All ranks call it.
    fn is_saved(&self) -> Result<bool, TrainerError> {
        let resumed = self.context.plan.resume.as_ref().map(|point| point.step.0);
        if !self.context.plan.from_memory || resumed == Some(self.step) {
            return Ok(resumed == Some(self.step));
        }
        let committed = || self.context.shelf(self.context.stage_kind())?.committed();
        let there = self.context.speaks() && committed()?.contains(&Step(self.step));
        // What rank 0 sees counts for all.
        Ok(agreement::agree(self.context.collective, there)?)
    }

    /// Does before a step what was asked for in the environment; whether the batch is to be poisoned.
    fn fail_on_purpose(&mut self) -> bool {
        let point = Point::step(self.context.stage_kind());
        let fault = point.and_then(|point| self.context.failpoints.hit(point, self.step + 1));
        if fault == Some(Fault::Flip) {
            self.parameters.flip_bit();
        }
        fault == Some(Fault::Poison)
    }

    /// Waits for a step's figures: it is carried out then.
    fn settle(&mut self, ledger: &mut Ledger, begun: Option<Begun>) -> Result<(), TrainerError> {
        let Some(begun) = begun else { return Ok(()) };
        let step = begun.step.0;
        ledger.read(self, begun)?;
        self.carried_out = step;
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        let peak = self.settings.optimizer.learning_rate;
        schedule::learning_rate(self.step, self.total, self.settings.schedule, peak)
    }

    fn take_step<T: Task>(
        &mut self,
        task: &mut T,
        (batch, poisoned): (&T::Batch, bool),
        learning_rate: f64,
        timeline: Timeline,
    ) -> Result<StepBegun, TrainerError> {
        let chunks = sampler::chunks(self.slots.clone(), self.settings.chunk);
        let sizes: Vec<i64> = chunks.iter().map(|chunk| (chunk.end - chunk.start) as i64).collect();
        let repeats = self.order.repeats(Step(self.step));
        let repeats = Repeats::new(repeats.into_iter().map(|repeat| (repeat.slot as i64, repeat.of as i64)));
        let optimizer = &self.settings.optimizer;
        let settings = StepSettings {
            step: self.step + 1,
            learning_rate,
            betas: optimizer.betas,
            eps: optimizer.eps,
            clip_norm: optimizer.clip_norm,
            skip_nonfinite: self.settings.skip_nonfinite > 0,
            loss: LossSettings::default(),
        };
        let taken = Taken {
            step: Step(self.step),
            chunks: &chunks,
            cut: Cut { sizes: &sizes, rows: &self.rows, repeats: &repeats },
            settings,
            collective: self.context.collective,
            parameters: &mut self.parameters,
            poisoned,
            timeline,
        };
        task.step(batch, taken)
    }

    /// Whether any rank is to stop after the step that was begun last, or has the plan of a later membership, and what was
    /// broken in its global batch.
    fn tell_peers(
        &self,
        broken: &[BrokenSample],
        saving: &mut Saving,
    ) -> Result<(bool, bool, Vec<i64>), CollectiveError> {
        let mut mine = Tally::mine(&self.order.epochs(Step(self.step - 1)), broken);
        mine.push(i64::from(self.context.link.stop_requested().is_some()));
        mine.push(i64::from(self.context.link.is_superseded()));
        mine.extend(saving.mine());
        let mut all = agreement::sums(self.context.collective, &mine)?;
        let mut any = || all.pop().expect("every rank says both") > 0;
        let (failed, busy) = (any(), any());
        let (superseded, stopped) = (any(), any());
        saving.heard(self, busy, failed);
        Ok((stopped, superseded, all))
    }
}

/// Gives every rank the parameters to go on with; returns how many steps were carried out. No rank goes on before rank 0 is here,
/// with a clean folder behind it.
fn restore(
    context: &Context<'_>,
    parameters: &mut FlatParameters,
    held: Option<&Held>,
    from: &From,
) -> Result<u64, TrainerError> {
    let (step, holder) = (from.step(), from.holder());
    match (from, held.filter(|_| holder == context.rank())) {
        (From::Memory { .. }, Some(held)) => parameters.load(|name| held.tensor(name))?,
        (From::Storage(loaded), _) => parameters.load(|name| loaded.tensor(name))?,
        (From::Memory { .. } | From::Beginning, _) => {}
    }
    // No checkpoint is newer than what is in memory, and storage that is away is no reason to lose that.
    if context.speaks() && !matches!(from, From::Memory { .. }) {
        context.shelf(context.stage_kind())?.set_aside(step, context.plan.generation)?;
        leave_recipe(context)?;
    }
    parameters.broadcast(context.collective, holder)?;
    if matches!(from, From::Memory { .. }) && parameters.is_sharded() {
        let tensor = held.filter(|_| holder == context.rank()).map(|held| move |name: &str| held.tensor(name));
        parameters.hand_over(context.collective, holder, tensor)?;
    }
    context.collective.barrier()?;
    Ok(step.0)
}

/// Checkpoints know the recipe's fingerprint alone: who is to make sense of them later needs the whole.
fn leave_recipe(context: &Context<'_>) -> Result<(), TrainerError> {
    let recipe = &context.plan.recipe;
    let elsewhere = recipe.checkpoints.is_some().then(|| recipe.checkpoint_root());
    for root in std::iter::once(context.plan.output.as_path()).chain(elsewhere) {
        recipe_file::write(context.storage, &paths::stage_folder(root, context.stage_kind()), recipe)?;
    }
    Ok(())
}

/// The data record of an order at its beginning.
fn cursor(order: &Order, sources: &[Source]) -> DataCursor {
    DataCursor::new(order.spec(), 0, |number| sources[number].fingerprint.clone())
}
