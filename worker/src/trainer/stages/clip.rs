//! Stage `clip`: the vision tower and the adapter learn against the stored text vectors, with negatives of all ranks.

use super::towers::{TowerSettings, Towers};
use crate::{
    checkpoint::{self, HostCopy, Loaded, Writer},
    collective::{Collective, CollectiveError},
    data::{
        Batch, BatchRequest, Convert, Dataset, Loader, LoaderConfig, Resize, SampleRequest, Transform,
        batch::pixels_to_tensor,
    },
    supervisor::ipc::Report,
    trainer::{
        commits,
        context::{Context, Outcome},
        error::TrainerError,
        failpoints::Point,
        metrics::{MetricsFile, StepMetrics},
        parameters::{FlatParameters, clip_groups},
        schedule,
        step::{PairEncoder, StepOutput, StepSettings, contrastive_step},
    },
    vectors::{Provenance, VectorStore},
};
use common::{
    ids::Step,
    manifest::{DataCursor, Share, SourceFingerprint, paths},
    recipe::{ClipStage, Length},
    sampler::{self, Order, SourceSize},
};
use half::bf16;
use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};
use tch::{Device, Kind, Tensor};

/// Columns of the logits that are computed at a time.
const LOGIT_TILE: i64 = 4096;
/// Batches decoded ahead.
const PREFETCH: usize = 4;

/// Runs the stage.
pub fn run(stage: &ClipStage, context: &mut Context<'_>) -> Result<Outcome, TrainerError> {
    let recipe = &context.plan.recipe;
    let datasets = context.datasets(&stage.data)?;
    let spec = recipe.model.text.as_ref().ok_or_else(|| TrainerError::Plan("`clip` needs [model.text]".to_owned()))?;
    let provenance = Provenance::of_encoder(spec, recipe.seed, recipe.embed_precision())?;
    let vectors =
        datasets.iter().map(|data| open_vectors(data, &provenance, context)).collect::<Result<Vec<_>, _>>()?;
    context.activity("building the towers");
    let width = vectors.first().map_or(0, VectorStore::width);
    let towers = Towers::build(recipe, tower_settings(stage, width), context.device)?;
    let order = order(stage, &datasets, context)?;
    let mut run = Run::prepare(stage, context, datasets, vectors, towers, order)?;
    run.train()
}

/// The towers that a stage trains, for text vectors of width `text_width`.
pub(super) fn tower_settings(stage: &ClipStage, text_width: usize) -> TowerSettings {
    TowerSettings { text_width, log_scale_init: stage.logit_scale_init, precision: stage.precision }
}

/// The vectors of a data set.
pub(super) fn open_vectors(
    dataset: &Dataset,
    provenance: &Provenance,
    context: &Context<'_>,
) -> Result<VectorStore, TrainerError> {
    let shards = dataset.shards().iter().map(|shard| (shard.stem.as_str(), shard.samples.clone()));
    Ok(VectorStore::open(&context.plan.output, dataset.name(), shards, &provenance.over(dataset.fingerprint()))?)
}

/// The vectors of samples' captions as one tensor [n, D] in fp32.
pub(super) fn gather_vectors<'a>(
    vectors: &VectorStore,
    wanted: impl IntoIterator<Item = (u64, &'a str)>,
    device: Device,
) -> Result<Tensor, TrainerError> {
    let mut numbers: Vec<bf16> = Vec::new();
    let mut rows = 0;
    for (sample, column) in wanted {
        let row = vectors.get(sample, column).ok_or_else(|| {
            TrainerError::Plan(format!(
                "the embedding store has no vector of sample {sample}, caption column `{column}`"
            ))
        })?;
        numbers.extend_from_slice(row);
        rows += 1;
    }
    let tensor = Tensor::from_slice(&numbers).view([rows, vectors.width() as i64]);
    Ok(tensor.to_device(device).to_kind(Kind::Float))
}

/// Whether any rank says yes. Every rank gets the same answer at the same step.
pub(super) fn agree(collective: &dyn Collective, yes: bool) -> Result<bool, CollectiveError> {
    let mut votes = Tensor::from_slice(&[i64::from(yes)]);
    collective.all_reduce_sum(&mut votes)?;
    Ok(votes.int64_value(&[0]) > 0)
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

fn order(stage: &ClipStage, datasets: &[Arc<Dataset>], context: &Context<'_>) -> Result<Order, TrainerError> {
    let sizes: Vec<SourceSize> =
        datasets.iter().map(|data| SourceSize { name: data.name().to_owned(), samples: data.len() }).collect();
    Order::new(context.plan.recipe.seed, &sizes, stage.global_batch)
        .map_err(|error| TrainerError::Plan(error.to_string()))
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
}

impl<'a, 'b> Run<'a, 'b> {
    fn prepare(
        stage: &'a ClipStage,
        context: &'a Context<'b>,
        datasets: Vec<Arc<Dataset>>,
        vectors: Vec<VectorStore>,
        towers: Towers,
        order: Order,
    ) -> Result<Self, TrainerError> {
        let total = match stage.length {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => epochs * order.steps_per_epoch(),
        };
        let variables: Vec<(String, Tensor)> = towers.store.variables().into_iter().collect();
        let layers = towers.vision.layers();
        let decay = stage.optimizer.layer_decay;
        let groups = clip_groups(stage.optimizer.weight_decay, decay, layers, |name| towers.vision.layer_id(name));
        let mut parameters = FlatParameters::new(variables, groups, context.device)?;
        let cursor = cursor(stage, context, &datasets, 0);
        let mut step = 0;
        if let Some(point) = &context.plan.resume {
            context.activity(&format!("loading the checkpoint of step {}", point.step));
            let loaded = checkpoint::read(&point.folder)?;
            same_order(&loaded.manifest.data, &cursor)?;
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
        })
    }

    fn train(&mut self) -> Result<Outcome, TrainerError> {
        let path = paths::stage_folder(&self.context.plan.output, "clip").join("metrics.jsonl");
        let io = |operation| {
            let path = path.clone();
            move |source| TrainerError::Io { operation, path: path.clone(), source }
        };
        let mut metrics =
            self.context.speaks().then(|| MetricsFile::open(&path, Step(self.step))).transpose().map_err(io("open"))?;
        let mut writer = self.writer();
        let mut loader = self.loader();
        let mut speed = Speed::new(self.step);
        let mut saved = self.context.plan.resume.as_ref().map(|point| point.step.0);
        let mut stopped = false;
        let mut skipped = 0;
        while self.step < self.total && !stopped {
            let waited = loader.wait_time();
            let batch =
                loader.next().ok_or_else(|| TrainerError::Plan("the loader ended before the stage".to_owned()))??;
            let data_wait = loader.wait_time().saturating_sub(waited);
            skipped += batch.skipped.len() as u64;
            let learning_rate = schedule::learning_rate(
                self.step,
                self.total,
                self.stage.schedule.warmup_steps,
                self.stage.optimizer.learning_rate,
            );
            self.context.failpoints.hit(Point::ClipStep, self.step + 1);
            let output = self.optimizer_step(&batch, learning_rate)?;
            if !output.loss.is_finite() {
                return Err(TrainerError::Diverged { step: self.step + 1, loss: output.loss });
            }
            self.step += 1;
            stopped = agree(self.context.collective, self.context.link.stop_requested().is_some())?;
            let due = self.step.is_multiple_of(self.stage.checkpoint.every_steps) || self.step == self.total || stopped;
            let stall = if due { self.save(&mut writer)? } else { Duration::ZERO };
            if due {
                saved = Some(self.step);
            }
            let row = speed.step(self, &output, learning_rate, data_wait, stall, skipped);
            if let Some(file) = &mut metrics {
                file.append(&row).map_err(io("write"))?;
            }
        }
        writer.finish()?;
        if let Some(step) = saved {
            commits::wait(self.context, Step(step))?;
        }
        Ok(Outcome { summary: (!stopped).then(|| speed.summary(self)), stopped })
    }

    fn optimizer_step(&mut self, batch: &Batch, learning_rate: f64) -> Result<StepOutput, TrainerError> {
        let chunks = sampler::chunks(self.slots.clone(), self.stage.chunk);
        let pixels = pixels_to_tensor(batch, self.context.device);
        let text = self.text(batch)?;
        let sizes: Vec<i64> = chunks.iter().map(|chunk| (chunk.end - chunk.start) as i64).collect();
        let encoder = Chunks {
            towers: &self.towers,
            pixels: pixels.split_with_sizes(&sizes, 0),
            text: text.split_with_sizes(&sizes, 0),
            kept: self.kept(batch).map(|kept| kept.split_with_sizes(&sizes, 0)),
        };
        let settings = StepSettings {
            step: self.step + 1,
            learning_rate,
            betas: self.stage.optimizer.betas,
            eps: self.stage.optimizer.eps,
            clip_norm: self.stage.optimizer.clip_norm,
            tile: LOGIT_TILE,
        };
        contrastive_step(
            &encoder,
            (&sizes, &self.rows),
            self.context.collective,
            &mut self.parameters,
            &self.towers.log_scale,
            &settings,
        )
    }

    /// The patches that are seen of each image of a batch, [b, K], drawn by (seed, data set, sample, epoch); absent when
    /// all are.
    fn kept(&self, batch: &Batch) -> Option<Tensor> {
        if self.stage.patch_dropout == 0.0 {
            return None;
        }
        let seed = self.context.plan.recipe.seed;
        let patches = u32::try_from(self.towers.vision.patches()).expect("an image has fewer than 2^32 patches");
        let kept = sampler::kept_patches(patches, self.stage.patch_dropout);
        let choose = |sample: &SampleRequest| {
            sampler::choose_patches(seed, sample.source, sample.index, sample.epoch, (kept, patches))
        };
        let numbers: Vec<i64> = batch.samples.iter().flat_map(choose).map(i64::from).collect();
        let kept_BK = Tensor::from_slice(&numbers).view([-1, i64::from(kept)]);
        Some(kept_BK.to_device(self.context.device))
    }

    /// The text vectors of a batch, one caption a sample, chosen by (seed, data set, sample, epoch).
    fn text(&self, batch: &Batch) -> Result<Tensor, TrainerError> {
        let seed = self.context.plan.recipe.seed;
        // One global batch comes from one data set.
        let source = batch.samples.first().map_or(0, |sample| sample.source);
        let dataset = &self.datasets[source as usize];
        let weights: Vec<u32> = dataset.columns().iter().map(|column| column.weight).collect();
        let wanted = batch.samples.iter().map(|sample| {
            let column = sampler::choose_caption(seed, source, sample.index, sample.epoch, &weights);
            (sample.index.0, dataset.columns()[column].name.as_str())
        });
        gather_vectors(&self.vectors[source as usize], wanted, self.context.device)
    }

    fn loader(&self) -> Loader {
        let config = LoaderConfig {
            datasets: self.datasets.clone(),
            image_size: self.towers.image_size as u32,
            transform: Transform::Train { augment: self.stage.augment },
            resize: Resize::default(),
            convert: Convert::Before,
            seed: self.context.plan.recipe.seed,
            threads: self.context.threads,
            prefetch_batches: PREFETCH,
        };
        let (order, slots) = (self.order.clone(), self.slots.clone());
        let requests = (self.step..self.total).map(move |step| {
            let draw = |slot| {
                let draw = order.draw(Step(step), slot);
                SampleRequest { source: draw.source as u32, index: draw.index, epoch: draw.epoch }
            };
            BatchRequest { tag: step, samples: slots.clone().map(draw).collect() }
        });
        Loader::start(config, requests)
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
        let copy = HostCopy::take(&self.parameters.named(), self.context.rank(), self.context.world());
        let folder = paths::checkpoint_folder(&self.context.plan.output, "clip", Step(self.step));
        writer.submit(folder, Step(self.step), copy)?;
        Ok(started.elapsed())
    }
}

fn cursor(stage: &ClipStage, context: &Context<'_>, datasets: &[Arc<Dataset>], step: u64) -> DataCursor {
    let sources = datasets.iter().map(|data| SourceFingerprint {
        name: data.name().to_owned(),
        samples: data.len(),
        fingerprint: data.fingerprint(),
    });
    DataCursor { position: step * stage.global_batch, seed: context.plan.recipe.seed, sources: sources.collect() }
}

/// Refuses to go on in another order than the checkpoint was written in.
fn same_order(written: &DataCursor, now: &DataCursor) -> Result<(), TrainerError> {
    let refuse = |what: String| {
        Err(TrainerError::Plan(format!(
            "the checkpoint cannot be resumed: {what}, so the samples would come in another order. \
             Undo the change, or start a new job with another `output`"
        )))
    };
    if written.seed != now.seed {
        return refuse(format!("its seed is {}, the recipe's is {}", written.seed, now.seed));
    }
    if written.sources.len() != now.sources.len() {
        return refuse(format!(
            "it was trained on {} data sets, the recipe names {}",
            written.sources.len(),
            now.sources.len()
        ));
    }
    for (then, now) in written.sources.iter().zip(&now.sources) {
        if then.name != now.name || then.samples != now.samples || then.fingerprint != now.fingerprint {
            return refuse(format!(
                "data set `{}` had {} samples (index {:.12}) and `{}` has {} now (index {:.12})",
                then.name, then.samples, then.fingerprint, now.name, now.samples, now.fingerprint
            ));
        }
    }
    Ok(())
}

/// A local slice in chunks.
struct Chunks<'a> {
    towers: &'a Towers,
    pixels: Vec<Tensor>,
    text: Vec<Tensor>,
    kept: Option<Vec<Tensor>>,
}

impl PairEncoder for Chunks<'_> {
    fn encode(&self, chunk: usize) -> (Tensor, Tensor) {
        let kept = self.kept.as_ref().map(|kept| &kept[chunk]);
        (self.towers.image_features(&self.pixels[chunk], kept), self.towers.text_features(&self.text[chunk]))
    }
}

/// Measures steps and reports them.
struct Speed {
    started: Instant,
    first_step: u64,
    step_began: Instant,
    window_began: Instant,
    window_steps: u64,
    window_wait: Duration,
    total_wait: Duration,
    total_stall: Duration,
    last_loss: f64,
}

impl Speed {
    fn new(step: u64) -> Self {
        let now = Instant::now();
        Self {
            started: now,
            first_step: step,
            step_began: now,
            window_began: now,
            window_steps: 0,
            window_wait: Duration::ZERO,
            total_wait: Duration::ZERO,
            total_stall: Duration::ZERO,
            last_loss: f64::NAN,
        }
    }

    /// A step is done: its line for the file, and now and then a report.
    fn step(
        &mut self,
        run: &Run<'_, '_>,
        output: &StepOutput,
        learning_rate: f64,
        data_wait: Duration,
        stall: Duration,
        skipped: u64,
    ) -> StepMetrics {
        let now = Instant::now();
        let row = StepMetrics {
            step: Step(run.step),
            generation: run.context.plan.generation,
            loss: output.loss,
            learning_rate,
            grad_norm: output.grad_norm,
            logit_scale: run.towers.log_scale.double_value(&[]).exp(),
            step_s: now.duration_since(self.step_began).as_secs_f64(),
            data_wait_s: data_wait.as_secs_f64(),
            checkpoint_stall_s: stall.as_secs_f64(),
        };
        self.step_began = now;
        self.window_steps += 1;
        self.window_wait += data_wait;
        self.total_wait += data_wait;
        self.total_stall += stall;
        self.last_loss = output.loss;
        let window = now.duration_since(self.window_began);
        if window >= Duration::from_millis(500) || run.step == run.total || run.step == self.first_step + 1 {
            let mut progress = run.context.progress(run.step, run.total);
            progress.loss = Some(row.loss);
            progress.learning_rate = Some(learning_rate);
            progress.grad_norm = Some(row.grad_norm);
            progress.logit_scale = Some(row.logit_scale);
            progress.samples_per_s = Some((self.window_steps * run.stage.global_batch) as f64 / window.as_secs_f64());
            progress.data_wait_share = Some(self.window_wait.as_secs_f64() / window.as_secs_f64());
            progress.step_s = Some(window.as_secs_f64() / self.window_steps as f64);
            progress.skipped_samples = skipped;
            progress.checkpoint = commits::newest(run.context);
            run.context.link.report(Report::Progress(Box::new(progress)));
            (self.window_began, self.window_steps, self.window_wait) = (now, 0, Duration::ZERO);
        }
        row
    }

    fn summary(&self, run: &Run<'_, '_>) -> serde_json::Value {
        let seconds = self.started.elapsed().as_secs_f64();
        let steps = run.step - self.first_step;
        let share = |part: Duration| format!("{:.1} %", 100.0 * part.as_secs_f64() / seconds.max(1e-9));
        let table = serde_json::json!({
            "title": format!("training ({steps} steps, {seconds:.1} s)"),
            "columns": ["loss", "samples/s", "s/step", "waiting for data", "checkpoint stall"],
            "rows": [[
                format!("{:.4}", self.last_loss),
                format!("{:.0}", (steps * run.stage.global_batch) as f64 / seconds.max(1e-9)),
                format!("{:.3}", seconds / steps.max(1) as f64),
                share(self.total_wait),
                share(self.total_stall),
            ]],
        });
        serde_json::json!({ "tables": [table] })
    }
}
