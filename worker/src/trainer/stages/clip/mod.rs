//! Stage `clip`: the vision tower and the adapter learn against the stored text vectors, with negatives of all ranks.

mod broken;
mod ledger;
mod tally;

use super::{
    text_vectors::TextVectors,
    towers::{TowerSettings, Towers},
};
use crate::{
    checkpoint::{self, HostCopy, Loaded, Writer},
    collective::{Collective, CollectiveError},
    data::{Batch, BatchRequest, Dataset, Loader, LoaderConfig, Normalise, OnBroken, SampleRequest, Transform},
    objective::Repeats,
    supervisor::ipc::Report,
    torch::transfer::Uploader,
    trainer::{
        commits,
        context::{Context, Outcome},
        error::TrainerError,
        failpoints::Point,
        layout::clip_groups,
        parameters::FlatParameters,
        schedule,
        step::{Cut, LossSettings, PairEncoder, StepBegun, StepSettings, contrastive_step},
        timeline::{Section, Timeline},
    },
    vectors::{VectorStore, nth},
};
use broken::BrokenFile;
use common::{
    ids::Step,
    manifest::{DataCursor, Share, paths},
    recipe::ClipStage,
    sampler::{self, Order},
};
use half::bf16;
use ledger::{Begun, Ledger};
use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};
use tally::Tally;
use tch::{Kind, Tensor};

/// Batches decoded ahead.
const PREFETCH: usize = 4;

/// Runs the stage.
pub fn run(stage: &ClipStage, context: &mut Context<'_>) -> Result<Outcome, TrainerError> {
    let recipe = &context.plan.recipe;
    let datasets = context.datasets(&stage.data)?;
    let sources = TextVectors::of(context, &stage.data)?;
    let (vectors, width) = sources.open_all(&datasets)?;
    context.activity("building the towers");
    let towers = Towers::build(recipe, tower_settings(stage, width), context.device)?;
    let samples: Vec<u64> = datasets.iter().map(|data| data.len()).collect();
    let order = recipe.order(stage, &samples).map_err(|error| TrainerError::Plan(error.to_string()))?;
    let mut run = Run::prepare(stage, context, datasets, vectors, towers, order)?;
    run.train()
}

/// The towers that a stage trains, for text vectors of width `text_width`.
pub(super) fn tower_settings(stage: &ClipStage, text_width: usize) -> TowerSettings {
    TowerSettings {
        text_width,
        log_scale_init: stage.logit_scale_init,
        precision: stage.precision,
        activation_checkpointing: stage.activation_checkpointing,
    }
}

/// The vectors of samples' captions, each with the store of its data set, one after the other.
fn rows_of<'a>(wanted: impl IntoIterator<Item = (&'a VectorStore, u64, &'a str)>) -> Result<Vec<bf16>, TrainerError> {
    let mut numbers: Vec<bf16> = Vec::new();
    for (vectors, sample, column) in wanted {
        let start = numbers.len();
        numbers.resize(start + vectors.width(), bf16::ZERO);
        if !vectors.read(sample, &nth(column, 0), &mut numbers[start..])? {
            return Err(TrainerError::Plan(format!(
                "the embedding store has no vector of sample {sample}, caption column `{column}`"
            )));
        }
    }
    Ok(numbers)
}

/// Whether any rank says yes. Every rank gets the same answer at the same step.
pub(super) fn agree(collective: &dyn Collective, yes: bool) -> Result<bool, CollectiveError> {
    Ok(sums(collective, &[i64::from(yes)])?[0] > 0)
}

/// Sums over ranks, between hosts: no device waits for them.
fn sums(collective: &dyn Collective, mine: &[i64]) -> Result<Vec<i64>, CollectiveError> {
    let mut all = Tensor::from_slice(mine);
    collective.all_reduce_sum(&mut all)?;
    Ok((0..mine.len()).map(|i| all.int64_value(&[i as i64])).collect())
}

/// Puts a checkpoint's parameters into the variables of the same names.
pub(super) fn load_parameters(store: &mut tch::nn::VarStore, loaded: &Loaded) -> Result<(), TrainerError> {
    for (name, mut variable) in store.variables() {
        let tensor = loaded.tensor(&format!("param.{name}"))?;
        if tensor.size() != variable.size() {
            return Err(TrainerError::Plan(format!(
                "the checkpoint's `{name}` has shape {:?}, this recipe's model has {:?}: config.json was changed since it was written",
                tensor.size(),
                variable.size()
            )));
        }
        tch::no_grad(|| variable.copy_(&tensor));
    }
    Ok(())
}

/// Everything of one run of the stage.
struct Run<'a, 'b> {
    stage: &'a ClipStage,
    context: &'a Context<'b>,
    datasets: Vec<Arc<Dataset>>,
    vectors: Vec<VectorStore>,
    towers: Towers,
    parameters: FlatParameters,
    cursor: DataCursor,
    order: Arc<Order>,
    total: u64,
    /// Committed steps.
    step: u64,
    slots: Range<u64>,
    rows: Vec<i64>,
    uploads: Uploads,
    normalise: Normalise,
}

/// What goes to the device for each step.
struct Uploads {
    pixels: Uploader,
    text: Uploader,
    kept: Uploader,
}

impl<'a, 'b> Run<'a, 'b> {
    fn prepare(
        stage: &'a ClipStage,
        context: &'a Context<'b>,
        datasets: Vec<Arc<Dataset>>,
        vectors: Vec<VectorStore>,
        towers: Towers,
        mut order: Order,
    ) -> Result<Self, TrainerError> {
        let total = stage.length.steps(&order);
        let variables: Vec<(String, Tensor)> = towers.store.variables().into_iter().collect();
        let layers = towers.vision.layers();
        let decay = stage.optimizer.layer_decay;
        let groups = clip_groups(stage.optimizer.weight_decay, decay, layers, |name| towers.vision.layer_id(name));
        let mut parameters = FlatParameters::new(variables, groups, context.device)?;
        if stage.optimizer.sharded && context.world().0 > 1 {
            parameters.shard(context.collective);
        }
        let mut cursor = cursor(&order, &datasets);
        let mut step = 0;
        if let Some(point) = &context.plan.resume {
            context.activity(&format!("loading the checkpoint of step {}", point.step));
            let loaded = checkpoint::read(&point.folder)?;
            let resumed = loaded.manifest.data.resume(&cursor, point.weights);
            order = resumed.map_err(|error| TrainerError::Plan(error.to_string()))?;
            cursor = self::cursor(&order, &datasets);
            parameters.load(|name| loaded.tensor(name))?;
            step = loaded.manifest.step.0;
        }
        if context.speaks() {
            let folder = paths::stage_folder(&context.plan.output, "clip");
            checkpoint::set_aside(&folder, Step(step), context.plan.generation)?;
        }
        // No rank goes on before rank 0 is here, with a clean folder behind it.
        parameters.broadcast(context.collective)?;
        if u64::from(context.world().0) > stage.global_batch {
            return Err(TrainerError::Plan(format!(
                "a global batch of {} cannot be shared by {} ranks: run with fewer, or raise `global_batch`",
                stage.global_batch,
                context.world()
            )));
        }
        let slots = sampler::local_slots(context.rank(), context.world(), stage.global_batch);
        let rows = sampler::rows(context.world(), stage.global_batch).into_iter().map(|n| n as i64).collect();
        Ok(Self {
            stage,
            context,
            datasets,
            vectors,
            towers,
            parameters,
            cursor,
            order: Arc::new(order),
            total,
            step,
            slots,
            rows,
            uploads: Uploads {
                pixels: Uploader::new(context.device)?,
                text: Uploader::new(context.device)?,
                kept: Uploader::new(context.device)?,
            },
            normalise: Normalise::new(context.device),
        })
    }

    fn train(&mut self) -> Result<Outcome, TrainerError> {
        let mut ledger = Ledger::open(self)?;
        let (mut broken, mut tally) = (BrokenFile::default(), Tally::new(self.datasets.len()));
        let mut writer = self.writer();
        let mut loader = self.loader();
        let mut saved = self.context.plan.resume.as_ref().map(|point| point.step.0);
        let mut stopped = false;
        // A step's figures are read while the next one is computed.
        let mut begun: Option<Begun> = None;
        while self.step < self.total && !stopped {
            let mut timeline = Timeline::begin(self.context.device);
            let waited = loader.wait_time();
            let batch =
                loader.next().ok_or_else(|| TrainerError::Plan("the loader ended before the stage".to_owned()))??;
            let data_wait = loader.wait_time().saturating_sub(waited);
            timeline.lap(Section::DataWait);
            broken.write(self, Step(self.step + 1), &batch.broken)?;
            let learning_rate = schedule::learning_rate(
                self.step,
                self.total,
                self.stage.schedule.warmup_steps,
                self.stage.optimizer.learning_rate,
            );
            self.context.failpoints.hit(Point::ClipStep, self.step + 1);
            let output = self.optimizer_step(&batch, learning_rate, timeline)?;
            self.step += 1;
            let this = Begun { step: Step(self.step), output, learning_rate, data_wait };
            if let Some(before) = begun.replace(this) {
                ledger.read(self, before)?;
            }
            let counts;
            (stopped, counts) = self.tell_peers(&batch)?;
            ledger.skipped(counts.iter().sum::<i64>().cast_unsigned());
            tally.add(&self.order.epochs(Step(self.step - 1)), &counts);
            for (dataset, count) in self.datasets.iter().zip(tally.most()) {
                dataset.bear(count, broken.examples(dataset.name()))?;
            }
            let due = self.step.is_multiple_of(self.stage.checkpoint.every_steps) || self.step == self.total || stopped;
            if due {
                // What is saved is known to be sound.
                if let Some(this) = begun.take() {
                    ledger.read(self, this)?;
                }
                ledger.stalled(self.save(&mut writer)?);
                saved = Some(self.step);
            }
        }
        writer.finish()?;
        if let Some(step) = saved {
            commits::wait(self.context, Step(step))?;
        }
        Ok(Outcome { summary: (!stopped).then(|| ledger.summary(self)), stopped })
    }

    /// Whether any rank is to stop after the step that was begun last, and what was broken in its global batch.
    fn tell_peers(&self, batch: &Batch) -> Result<(bool, Vec<i64>), CollectiveError> {
        let mut mine = Tally::mine(&self.order.epochs(Step(self.step - 1)), &batch.broken);
        mine.push(i64::from(self.context.link.stop_requested().is_some()));
        let mut all = sums(self.context.collective, &mine)?;
        let stops = all.pop().expect("every rank says whether it is to stop");
        Ok((stops > 0, all))
    }

    fn optimizer_step(
        &mut self,
        batch: &Batch,
        learning_rate: f64,
        timeline: Timeline,
    ) -> Result<StepBegun, TrainerError> {
        let chunks = sampler::chunks(self.slots.clone(), self.stage.chunk);
        let pixels = self.uploads.pixels.upload(&batch.pixels, &batch.shape(), Kind::Uint8)?;
        let text = self.text(batch)?;
        let kept = self.kept(batch)?;
        let sizes: Vec<i64> = chunks.iter().map(|chunk| (chunk.end - chunk.start) as i64).collect();
        let encoder = Chunks {
            towers: &self.towers,
            pixels: pixels.split_with_sizes(&sizes, 0),
            text: text.split_with_sizes(&sizes, 0),
            kept: kept.map(|kept| kept.split_with_sizes(&sizes, 0)),
            normalise: &self.normalise,
        };
        let repeats = self.order.repeats(Step(self.step));
        let repeats = Repeats::new(repeats.into_iter().map(|repeat| (repeat.slot as i64, repeat.of as i64)));
        let settings = StepSettings {
            step: self.step + 1,
            learning_rate,
            betas: self.stage.optimizer.betas,
            eps: self.stage.optimizer.eps,
            clip_norm: self.stage.optimizer.clip_norm,
            loss: LossSettings::default(),
        };
        contrastive_step(
            &encoder,
            Cut { sizes: &sizes, rows: &self.rows, repeats: &repeats },
            self.context.collective,
            &mut self.parameters,
            &self.towers.log_scale,
            &settings,
            timeline,
        )
    }

    /// How many patches of an image a step sees.
    fn patches_seen(&self) -> u32 {
        let patches = u32::try_from(self.towers.vision.patches()).expect("an image has fewer than 2^32 patches");
        sampler::kept_patches(patches, self.stage.patch_dropout)
    }

    /// The patches that are seen of each image of a batch, [b, K], drawn by (seed, data set, sample, epoch); absent when
    /// all are.
    fn kept(&mut self, batch: &Batch) -> Result<Option<Tensor>, TrainerError> {
        if self.stage.patch_dropout == 0.0 {
            return Ok(None);
        }
        let seed = self.context.plan.recipe.seed;
        let patches = u32::try_from(self.towers.vision.patches()).expect("an image has fewer than 2^32 patches");
        let kept = self.patches_seen();
        let choose = |sample: &SampleRequest| {
            sampler::choose_patches(seed, sample.source, sample.index, sample.epoch, (kept, patches))
        };
        let numbers: Vec<i64> = batch.samples.iter().flat_map(choose).map(i64::from).collect();
        let shape = [batch.samples.len() as i64, i64::from(kept)];
        Ok(Some(self.uploads.kept.upload(bytemuck::cast_slice(&numbers), &shape, Kind::Int64)?))
    }

    /// The text vectors of a batch, one caption a sample, chosen by (seed, data set, sample, epoch).
    fn text(&mut self, batch: &Batch) -> Result<Tensor, TrainerError> {
        let seed = self.context.plan.recipe.seed;
        let weights = |data: &Arc<Dataset>| data.columns().iter().map(|column| column.weight).collect();
        let weights: Vec<Vec<u32>> = self.datasets.iter().map(weights).collect();
        let wanted = batch.samples.iter().map(|sample| {
            let source = sample.source as usize;
            let column = sampler::choose_caption(seed, sample.source, sample.index, sample.epoch, &weights[source]);
            (&self.vectors[source], sample.index.0, self.datasets[source].columns()[column].name.as_str())
        });
        let numbers = rows_of(wanted)?;
        let width = self.vectors.first().map_or(0, VectorStore::width);
        let shape = [batch.samples.len() as i64, width as i64];
        let text_BD = self.uploads.text.upload(bytemuck::cast_slice(&numbers), &shape, Kind::BFloat16)?;
        Ok(text_BD.to_kind(Kind::Float))
    }

    fn loader(&self) -> Loader {
        let config = LoaderConfig {
            datasets: self.datasets.clone(),
            image_size: self.towers.image_size as u32,
            transform: Transform::Train { augment: self.stage.augment },
            pixels: self.stage.pixels,
            convert: self.stage.convert_to_rgb,
            on_broken: OnBroken::Replace(self.order.clone()),
            seed: self.context.plan.recipe.seed,
            threads: self.context.threads,
            prefetch_batches: PREFETCH,
        };
        let (order, slots) = (self.order.clone(), self.slots.clone());
        let steps = self.step..self.total;
        Loader::start(config, steps.map(move |step| BatchRequest::of_step(&order, Step(step), slots.clone())))
    }

    fn writer(&self) -> Writer {
        let link = self.context.link.clone();
        let (generation, rank, cursor) = (self.context.plan.generation, self.context.rank(), self.cursor.clone());
        let batch = self.stage.global_batch;
        Writer::start(move |step: Step, part| {
            let data = DataCursor { position: step.0 * batch, ..cursor.clone() };
            let share = Box::new(Share { part, data });
            link.report(Report::CheckpointWritten { generation, rank, step, share });
        })
    }

    /// Copies this rank's share to host memory and hands it to the writer; returns how long the training stood still.
    fn save(&self, writer: &mut Writer) -> Result<Duration, TrainerError> {
        let started = Instant::now();
        let copy =
            HostCopy::take(&self.parameters.named(self.context.collective)?, self.context.rank(), self.context.world());
        let folder = paths::checkpoint_folder(&self.context.plan.output, "clip", Step(self.step));
        writer.submit(folder, Step(self.step), copy)?;
        Ok(started.elapsed())
    }
}

/// The data record of an order at its beginning.
fn cursor(order: &Order, datasets: &[Arc<Dataset>]) -> DataCursor {
    DataCursor::new(order.spec(), 0, |number| datasets[number].fingerprint())
}

/// A local slice in chunks.
struct Chunks<'a> {
    towers: &'a Towers,
    pixels: Vec<Tensor>,
    text: Vec<Tensor>,
    kept: Option<Vec<Tensor>>,
    normalise: &'a Normalise,
}

impl PairEncoder for Chunks<'_> {
    fn encode(&self, chunk: usize) -> (Tensor, Tensor) {
        let kept = self.kept.as_ref().map(|kept| &kept[chunk]);
        // Bytes until here: a chunk's pixels are numbers while it is encoded.
        let pixels = self.normalise.apply(&self.pixels[chunk]);
        (self.towers.image_features(&pixels, kept), self.towers.text_features(&self.text[chunk]))
    }
}
