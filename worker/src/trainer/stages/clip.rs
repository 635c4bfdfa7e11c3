//! Stage `clip`: the vision tower and the adapter learn against the stored text vectors, with negatives of all ranks.

use super::{
    caption_vectors::CaptionVectors,
    distill,
    eval::Periodic,
    frozen,
    teacher::Teacher,
    text_vectors::TextVectors,
    towers::{TowerSettings, Towers},
    tuning::{part_of, seed_chunk, whole_chunk},
};
use crate::{
    data::{
        Batch, BatchRequest, BrokenSample, Dataset, Loader, LoaderConfig, Normalise, OnBroken, SampleRequest, Transform,
    },
    torch::transfer::Uploader,
    trainer::{
        context::{Context, Outcome},
        error::TrainerError,
        failpoints::{Failpoints, Point},
        layout::clip_groups,
        parameters::FlatParameters,
        step::{
            Distillation, Pairing, StepBegun,
            clip::{PairEncoder, clip_step},
        },
        training::{Source, Taken, Task, Training},
    },
    vectors::VectorStore,
};
use common::{
    ids::Step,
    recipe::{self, ClipStage, SelfDistillation},
    sampler::{self, Order},
    status::{Evaluated, Progress},
};
use std::{ops::Range, sync::Arc, time::Duration};
use tch::{Kind, Tensor};

/// Batches decoded ahead.
const PREFETCH: usize = 4;

/// Runs the stage.
pub fn run(stage: &ClipStage, context: &mut Context<'_>) -> Result<Outcome, TrainerError> {
    let recipe = &context.plan.recipe;
    let datasets = context.datasets(&stage.training.data)?;
    let sources = TextVectors::of(context, &stage.training.data)?;
    let (vectors, width) = sources.open_all(&datasets)?;
    context.activity("building the towers");
    let towers = Towers::build(recipe, tower_settings(stage, width), context.device)?;
    if let (Some(folder), Some(spec), None) =
        (recipe.adapter_before(context.plan.stage), &recipe.model.adapter, &context.plan.resume)
    {
        context.activity("taking the adapter that `distill` left");
        distill::begin_with(&towers.store.variables(), &folder, spec)?;
    }
    let samples: Vec<u64> = datasets.iter().map(|data| data.len()).collect();
    let order = recipe.order(&stage.training, &samples).map_err(|error| TrainerError::Plan(error.to_string()))?;
    let (optimizer, layers) = (&stage.training.optimizer, towers.vision.layers());
    let groups =
        clip_groups(optimizer.weight_decay, optimizer.layer_decay, layers, |name| towers.vision.layer_id(name));
    towers.train(true);
    let (trained, frozen) = frozen::parted(towers.variables());
    let mut parameters = FlatParameters::new(trained, groups, context.device)?.with_frozen(frozen);
    if let Some(ema) = stage.ema {
        parameters.average(ema.decay, stage.objective.self_distillation.is_some());
    }
    let teach = |_| Teacher::of(&towers, &parameters, recipe, tower_settings(stage, width));
    let teacher = stage.objective.self_distillation.map(teach).transpose()?;
    let sources = datasets.iter().map(|data| Source { limit: data.limit(), fingerprint: data.fingerprint() }).collect();
    let periodic = stage.eval.as_ref().map(|eval| Periodic::open(eval, width, context)).transpose()?;
    let mut training = Training::prepare(&stage.training, context, sources, order, parameters)?;
    let mut pairs = Pairs::open(stage, context, &training, (datasets, vectors, towers, teacher, periodic))?;
    training.run(&mut pairs)
}

/// The towers that a stage trains, for text vectors of width `text_width`.
pub(in crate::trainer) fn tower_settings(stage: &ClipStage, text_width: usize) -> TowerSettings {
    TowerSettings {
        text_width,
        log_scale_init: stage.logit_scale_init,
        objective: stage.objective,
        lock: stage.lock,
        lora: stage.lora.clone(),
        averaged: stage.ema.is_some_and(|ema| ema.used),
        precision: stage.training.precision,
        activation_checkpointing: stage.training.activation_checkpointing,
    }
}

/// Images and text vectors as the training's task.
struct Pairs<'a, 'b> {
    context: &'a Context<'b>,
    periodic: Option<Periodic<'a>>,
    stage: &'a ClipStage,
    seed: u64,
    vectors: Arc<CaptionVectors>,
    towers: Towers,
    teacher: Option<Teacher>,
    loader: Loader,
    uploads: Uploads,
    normalise: Normalise,
}

/// What a training opens once: data, text vectors, towers, a teacher, and what is evaluated on the way.
type Opened<'a> = (Vec<Arc<Dataset>>, Vec<VectorStore>, Towers, Option<Teacher>, Option<Periodic<'a>>);

/// What goes to the device for each step.
struct Uploads {
    pixels: Uploader,
    text: Uploader,
    kept: Uploader,
}

impl<'a, 'b> Pairs<'a, 'b> {
    fn open(
        stage: &'a ClipStage,
        context: &'a Context<'b>,
        training: &Training<'_, '_>,
        (datasets, vectors, towers, teacher, periodic): Opened<'a>,
    ) -> Result<Self, TrainerError> {
        let (order, slots) = (training.order().clone(), training.slots());
        let vectors = Arc::new(CaptionVectors::new(context.plan.recipe.seed, datasets.clone(), vectors));
        let config = LoaderConfig {
            datasets,
            image_size: towers.image_size as u32,
            transform: Transform::Train { augment: stage.augment },
            pixels: stage.pixels,
            convert: stage.convert_to_rgb,
            on_broken: OnBroken::Replace(order.clone()),
            seed: context.plan.recipe.seed,
            threads: context.threads,
            prefetch_batches: PREFETCH,
            beside: Some(vectors.clone()),
        };
        let request = move |step| BatchRequest::of_step(&order, Step(step), slots.clone());
        let upload = || Uploader::new(context.device);
        Ok(Self {
            context,
            periodic,
            stage,
            seed: context.plan.recipe.seed,
            vectors,
            towers,
            teacher,
            loader: Loader::start(config, training.steps().map(request)),
            uploads: Uploads { pixels: upload()?, text: upload()?, kept: upload()? },
            normalise: Normalise::new(context.device),
        })
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
        let seed = self.seed;
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
        let (numbers, width) = (self.vectors.of(&batch.samples)?, self.vectors.width());
        let shape = [batch.samples.len() as i64, width as i64];
        let text_BD = self.uploads.text.upload(bytemuck::cast_slice(&numbers), &shape, Kind::BFloat16)?;
        Ok(text_BD.to_kind(Kind::Float))
    }
}

impl Task for Pairs<'_, '_> {
    type Batch = Batch;

    fn next(&mut self) -> Option<Result<Batch, TrainerError>> {
        Some(self.loader.next()?.map_err(TrainerError::from))
    }

    fn waited(&self) -> Duration {
        self.loader.wait_time()
    }

    fn broken<'b>(&self, batch: &'b Batch) -> &'b [BrokenSample] {
        &batch.broken
    }

    fn flops(&self, batch: &Batch) -> f64 {
        let patches = i64::from(self.patches_seen());
        let teacher = self.teacher.as_ref().map_or(0.0, |_| self.towers.vision.flops(patches));
        (self.towers.flops_per_pair(patches) + teacher) * batch.samples.len() as f64
    }

    fn evaluates_after(&self, step: Step, order: &Order) -> bool {
        self.periodic.as_ref().is_some_and(|periodic| periodic.is_due(step, order))
    }

    fn evaluates_average(&self) -> bool {
        self.stage.ema.is_some_and(|ema| ema.used)
    }

    fn evaluate(&self, standing: &Progress) -> Result<Vec<Evaluated>, TrainerError> {
        let Some(periodic) = &self.periodic else { return Ok(Vec::new()) };
        self.towers.train(false);
        let found = periodic.measure(&self.towers, standing, self.context);
        self.towers.train(true);
        found
    }

    fn step(&mut self, batch: &Batch, taken: Taken<'_>) -> Result<StepBegun, TrainerError> {
        let pixels = self.uploads.pixels.upload(&batch.pixels, &batch.shape(), Kind::Uint8)?;
        let text = self.text(batch)?;
        let kept = self.kept(batch)?;
        let sizes = taken.cut.sizes;
        let encoder = Chunks {
            towers: &self.towers,
            teacher: self.teacher.as_ref(),
            pixels: pixels.split_with_sizes(sizes, 0),
            text: text.split_with_sizes(sizes, 0),
            kept: kept.map(|kept| kept.split_with_sizes(sizes, 0)),
            normalise: &self.normalise,
            slots: taken.chunks,
            training: &self.stage.training,
            seed: (self.seed, taken.step),
            poisoned: taken.poisoned,
            failpoints: self.context.failpoints,
        };
        let Taken { cut, settings, collective, parameters, timeline, .. } = taken;
        let batch = self.stage.training.global_batch;
        let distil =
            |how: SelfDistillation| Distillation { weight: how.weight, rows: how.rows.unwrap_or(batch) as f64 };
        let distillation = self.stage.objective.self_distillation.map(distil);
        let pairing = Pairing { distillation, ..self.towers.pairing() };
        clip_step(&encoder, cut, collective, parameters, pairing, &settings, timeline)
    }
}

/// A local slice in chunks.
struct Chunks<'a> {
    towers: &'a Towers,
    teacher: Option<&'a Teacher>,
    pixels: Vec<Tensor>,
    text: Vec<Tensor>,
    kept: Option<Vec<Tensor>>,
    normalise: &'a Normalise,
    slots: &'a [Range<u64>],
    training: &'a recipe::Training,
    /// Of dropout: the recipe's, and the step.
    seed: (u64, Step),
    poisoned: bool,
    failpoints: &'a Failpoints,
}

impl Chunks<'_> {
    /// A chunk's pixels: bytes until here, numbers while it is encoded.
    fn pixels(&self, chunk: usize) -> Tensor {
        let mut pixels = self.normalise.apply(&self.pixels[chunk]);
        if self.poisoned {
            let _ = pixels.fill_(f64::NAN);
        }
        pixels
    }

    fn kept(&self, chunk: usize) -> Option<&Tensor> {
        self.kept.as_ref().map(|kept| &kept[chunk])
    }
}

impl PairEncoder for Chunks<'_> {
    fn teach(&self, chunk: usize) -> Option<Tensor> {
        Some(self.teacher?.image_features(&self.pixels(chunk), self.kept(chunk)))
    }

    fn encode(&self, chunk: usize) -> (Tensor, Tensor) {
        if self.towers.drops() {
            let (piece, whole) = (&self.slots[chunk], whole_chunk(&self.slots[chunk], self.training));
            seed_chunk(self.seed.0, self.seed.1, whole.start);
            self.towers.see(part_of(piece, &whole, 1, self.towers.store.device()));
        }
        let image = self.towers.image_features(&self.pixels(chunk), self.kept(chunk));
        let text = self.towers.text_features(&self.text[chunk]);
        self.failpoints.pass(Point::Forward);
        (image, text)
    }
}
