//! The forecast of one stage: arithmetic on its settings, the models' sizes and what is known of its data.

use super::{
    given::{Given, Set},
    memory::{self, Passes, Rows},
    traffic,
};
use crate::model::{llama::LlamaConfig, size::Size, vision::VisionConfig};
use common::{
    ids::WorldSize,
    recipe::{ClipStage, ContrastStage, DistillStage, EmbedStage, Lora, MntpStage, PairRule, Recipe, Stage, Training},
    sampler,
};
use serde::Serialize;

/// Something in bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Item {
    /// What.
    pub what: String,
    /// How much.
    pub bytes: u64,
}

impl Item {
    pub(super) fn new(what: &str, bytes: i64) -> Self {
        Self { what: what.to_owned(), bytes: bytes.max(0).cast_unsigned() }
    }
}

/// What a stage would do and take. Absent is what nobody knows, or what the stage does not have.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Forecast {
    /// The stage.
    pub stage: &'static str,
    /// Samples of an epoch: pairs, blocks, captions.
    pub samples: Option<u64>,
    /// Optimizer steps.
    pub steps: Option<u64>,
    /// Samples a step over all ranks.
    pub global_batch: Option<u64>,
    /// The most that a rank has of them.
    pub rank_batch: Option<u64>,
    /// Samples a pass.
    pub chunk: Option<u64>,
    /// What a rank's device holds.
    pub memory: Vec<Item>,
    /// What a rank sends in a step.
    pub sent_per_step: Vec<Item>,
    /// What the stage leaves on storage.
    pub storage: Vec<Item>,
    /// Floating-point operations of all steps over all ranks, as MFU counts them.
    pub flop: Option<f64>,
    /// The same with what is computed twice to save memory.
    pub executed_flop: Option<f64>,
}

/// Why there is no forecast.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForecastError {
    #[error(
        "stage `{stage}`: a global batch of {batch} cannot be shared by {ranks} ranks; give fewer, or raise `global_batch`"
    )]
    TooManyRanks { stage: &'static str, batch: u64, ranks: u32 },
    #[error("stage `{stage}`: {source}")]
    Order { stage: &'static str, source: sampler::OrderError },
}

/// What a stage is forecast from.
pub(super) struct Around<'a> {
    recipe: &'a Recipe,
    given: &'a Given,
    world: WorldSize,
}

/// Stage `number` of the recipe.
pub(super) fn forecast(
    recipe: &Recipe,
    (number, stage): (usize, &Stage),
    given: &Given,
    world: WorldSize,
) -> Result<Forecast, ForecastError> {
    let around = Around { recipe, given, world };
    let forecast = match stage {
        Stage::Mntp(stage) => around.mntp(stage)?,
        Stage::Contrast(stage) => around.contrast(stage)?,
        Stage::Embed(stage) => around.embed(stage, recipe.llm_before(number).is_some()),
        Stage::Distill(stage) => around.distill(stage)?,
        Stage::Clip(stage) => around.clip(stage)?,
        Stage::Eval(stage) => around.eval(stage.data.as_slice(), stage.chunk),
        Stage::Export => around.export(),
    };
    Ok(Forecast { stage: stage.kind(), ..forecast })
}

impl Around<'_> {
    fn sets<'s>(&'s self, names: &'s [String]) -> impl Iterator<Item = (&'s String, &'s Set)> {
        names.iter().filter_map(|name| Some((name, self.given.sets.get(name)?)))
    }

    /// The mean over data sets, each as often as it has samples; of those whose size nobody knows, as if they had one.
    fn mean_tokens(&self, names: &[String]) -> f64 {
        let weights = self.sets(names).map(|(_, set)| (set.samples.unwrap_or(1) as f64, set.tokens));
        let (count, sum) = weights.fold((0.0, 0.0), |(count, sum), (n, tokens)| (count + n, sum + n * tokens));
        if count > 0.0 { sum / count } else { 0.0 }
    }

    /// Batches and steps of a training over data sets with so many samples each, as far as they are known.
    fn training(
        &self,
        stage: &'static str,
        training: &Training,
        samples: &[Option<u64>],
    ) -> Result<Forecast, ForecastError> {
        let (batch, ranks) = (training.global_batch, self.world.0);
        if u64::from(ranks) > batch {
            return Err(ForecastError::TooManyRanks { stage, batch, ranks });
        }
        let known: Option<Vec<u64>> = samples.iter().copied().collect();
        let steps = match (&known, training.length) {
            (Some(samples), length) => {
                let order = self.recipe.order(training, samples);
                Some(length.steps(&order.map_err(|source| ForecastError::Order { stage, source })?))
            }
            (None, common::recipe::Length::Steps(steps)) => Some(steps),
            (None, common::recipe::Length::Epochs(_)) => None,
        };
        let rank_batch = sampler::rows(self.world, batch).into_iter().max();
        Ok(Forecast {
            samples: known.map(|samples| samples.iter().sum()),
            steps,
            global_batch: Some(batch),
            rank_batch,
            chunk: Some(training.chunk.min(rank_batch.unwrap_or(training.chunk))),
            ..Forecast::default()
        })
    }

    fn mntp(&self, stage: &MntpStage) -> Result<Forecast, ForecastError> {
        let block = u64::from(stage.block);
        let blocks = |set: Option<&Set>| {
            let set = set?;
            Some(((set.samples? as f64 * set.tokens) as u64 / block).max(1))
        };
        let samples: Vec<Option<u64>> =
            stage.training.data.iter().map(|name| blocks(self.given.sets.get(name))).collect();
        let mut forecast = self.training("mntp", &stage.training, &samples)?;
        let Some(llm) = self.given.llm.as_ref().map(|llm| &llm.config) else { return Ok(forecast) };
        let (size, passes) = (llm.size(), Passes::of(&stage.training));
        let tokens = forecast.chunk.unwrap_or(1) * block;
        let masked = tokens as f64 * stage.mask.rate;
        let trained = self.tuned(&mut forecast, llm, (&stage.training, stage.lora.as_ref()), tokens as f64);
        let head = (size.width * llm.vocab_size) as f64;
        let logits = masked * (llm.vocab_size * (passes.bytes + 8)) as f64;
        forecast.memory.push(Item::new("head", (head * passes.bytes as f64) as i64));
        forecast.memory.push(Item::new("logits of masked tokens", logits as i64));
        forecast.sent_per_step = vec![traffic::gradients(trained, self.world)];
        let lengths = [i64::from(stage.block)];
        let forward = llm.flops(&lengths) + 2.0 * stage.mask.rate * block as f64 * head;
        self.operations(&mut forecast, Work::tuned(forward, stage.lora.is_some()), &stage.training, false);
        Ok(forecast)
    }

    fn contrast(&self, stage: &ContrastStage) -> Result<Forecast, ForecastError> {
        let data = &stage.training.data;
        let samples: Vec<Option<u64>> = data.iter().map(|name| self.given.sets.get(name)?.samples).collect();
        let mut forecast = self.training("contrast", &stage.training, &samples)?;
        let Some(llm) = self.given.llm.as_ref().map(|llm| &llm.config) else { return Ok(forecast) };
        let roles = if stage.negatives { 3 } else { 2 };
        let instruction = if stage.pairs.values().any(has_instruction) { 12.0 } else { 0.0 };
        let length = self.mean_tokens(data);
        let pair = roles as f64 * length + instruction;
        let tokens = forecast.chunk.unwrap_or(1) as f64 * pair;
        let trained = self.tuned(&mut forecast, llm, (&stage.training, stage.lora.as_ref()), tokens);
        let (global, own) = (stage.training.global_batch as i64, forecast.rank_batch.unwrap_or(0) as i64);
        let (width, bytes) = (llm.hidden_size, Passes::of(&stage.training).bytes);
        forecast.memory.extend(memory::loss(Rows { global, own, width, bytes, kinds: roles }));
        forecast.sent_per_step = vec![
            traffic::gather("vectors", roles * global * width * bytes, self.world),
            traffic::gather("statistics of the loss", global * 2 * 4, self.world),
            traffic::gradients(trained, self.world),
        ];
        let forward = roles as f64 * llm.flops(&[length.round() as i64]);
        self.operations(&mut forecast, Work::tuned(forward, stage.lora.is_some()), &stage.training, true);
        Ok(forecast)
    }

    /// Memory and storage of an LLM that is tuned, with passes over `tokens` tokens; returns how many parameters are trained.
    fn tuned(
        &self,
        forecast: &mut Forecast,
        llm: &LlamaConfig,
        (training, lora): (&Training, Option<&Lora>),
        tokens: f64,
    ) -> i64 {
        let (size, passes) = (llm.size(), Passes::of(training));
        let updates = lora.map(|lora| updates((&llm.linears(), size.blocks), lora, passes.bytes));
        let trained = updates.map_or(size.parameters, |(parameters, _)| parameters);
        forecast.memory = memory::trained(trained, training, self.world);
        match updates {
            Some((_, kept)) => {
                forecast.memory.push(Item::new("frozen weights", passes.bytes * size.parameters));
                let blocks = if passes.recompute { 1 } else { size.blocks };
                let beside = tokens * (kept * blocks) as f64;
                let kept = memory::activations(&size, tokens, passes) + beside;
                forecast.memory.push(Item::new("activations of a chunk", kept as i64));
                forecast.storage.push(Item::new("adapter", 4 * trained));
            }
            None => {
                forecast.memory.push(Item::new("weights as computed with", memory::casts(&size, passes)));
                let kept = memory::activations(&size, tokens, passes);
                forecast.memory.push(Item::new("activations of a chunk", kept as i64));
                forecast.storage.push(Item::new("model", 4 * trained));
            }
        }
        forecast.storage.push(checkpoints(trained, training));
        trained
    }

    /// Operations of all steps.
    fn operations(&self, forecast: &mut Forecast, work: Work, training: &Training, two_passes: bool) {
        let again = f64::from(u8::from(training.activation_checkpointing))
            + f64::from(u8::from(two_passes && forecast.chunk < forecast.rank_batch));
        let samples = forecast.steps.map(|steps| steps as f64 * training.global_batch as f64);
        forecast.flop = samples.map(|samples| samples * work.all);
        forecast.executed_flop = samples.map(|samples| samples * (work.all + again * work.forward));
    }

    fn embed(&self, stage: &EmbedStage, reads: bool) -> Forecast {
        // Vectors that are there already are not made.
        let made: Vec<String> = stage
            .data
            .iter()
            .filter(|name| self.recipe.data.get(*name).is_some_and(|set| set.vectors.is_none()))
            .cloned()
            .collect();
        let captions = |(name, set): (&String, &Set)| Some((set.samples? * self.columns(name), set.tokens));
        let known: Option<Vec<(u64, f64)>> = self.sets(&made).map(captions).collect();
        let known = known.filter(|known| known.len() == made.len());
        let mut forecast =
            Forecast { samples: known.as_ref().map(|known| known.iter().map(|(n, _)| n).sum()), ..Forecast::default() };
        self.taught(stage, &mut forecast);
        let Some(llm) = self.given.llm.as_ref().filter(|_| reads).map(|llm| &llm.config) else { return forecast };
        let (size, bytes) = (llm.size(), memory::bytes(stage.precision));
        // A block's input, its norms in fp32, q, k, v and what is gathered; or its input and the widest part of the MLP.
        let live = size.width * (2 * bytes + 8) + (6 * size.width * bytes).max(3 * llm.intermediate_size * bytes);
        forecast.memory.extend([
            Item::new("weights", bytes * size.parameters),
            Item::new("activations of a batch", live * stage.batch_tokens as i64),
        ]);
        if let Some(known) = known {
            let vectors = known.iter().map(|(count, _)| *count as i64).sum::<i64>() * size.width * 2;
            forecast.storage.push(Item::new("text vectors", vectors));
            let flop: f64 =
                known.iter().map(|(count, tokens)| *count as f64 * llm.flops(&[tokens.round() as i64])).sum();
            forecast.flop = Some(flop + forecast.flop.unwrap_or(0.0));
            forecast.executed_flop = forecast.flop;
        }
        forecast
    }

    /// What the teacher adds to `embed`: it reads the captions that `distill` learns from.
    fn taught(&self, stage: &EmbedStage, forecast: &mut Forecast) {
        let Some(teacher) = self.given.teacher.as_ref().map(|teacher| &teacher.config) else { return };
        let data: Vec<String> = self.recipe.taught(&stage.data).cloned().collect();
        forecast.memory.push(Item::new("the teacher", memory::bytes(stage.precision) * teacher.parameters()));
        let longest = teacher.max_position_embeddings;
        let captions =
            |(name, set): (&String, &Set)| Some((set.samples? * self.columns(name), set.tokens.round() as i64));
        let known: Option<Vec<(u64, i64)>> = self.sets(&data).map(captions).collect();
        let Some(known) = known.filter(|known| known.len() == data.len()) else { return };
        let count: u64 = known.iter().map(|(count, _)| count).sum();
        forecast.storage.push(Item::new("the teacher's vectors", count as i64 * teacher.projection_dim * 2));
        let flop = |(count, tokens): &(u64, i64)| *count as f64 * teacher.flops(&[longest.min(*tokens)]);
        forecast.flop = Some(known.iter().map(flop).sum());
        forecast.executed_flop = forecast.flop;
    }

    /// Captions of a sample that are read.
    fn columns(&self, name: &str) -> u64 {
        self.recipe.data[name].captions.columns.iter().filter(|column| column.weight > 0).count() as u64
    }

    fn distill(&self, stage: &DistillStage) -> Result<Forecast, ForecastError> {
        let data = &stage.training.data;
        let samples: Vec<Option<u64>> = data.iter().map(|name| self.given.sets.get(name)?.samples).collect();
        let mut forecast = self.training("distill", &stage.training, &samples)?;
        let Some(adapter) = &self.given.adapter else { return Ok(forecast) };
        let (size, passes) = (adapter.size(), Passes::of(&stage.training));
        // Its blocks are never run again.
        let whole = Passes { recompute: false, ..passes };
        let (global, own) = (stage.training.global_batch as i64, forecast.rank_batch.unwrap_or(0) as i64);
        let chunk = forecast.chunk.unwrap_or(1) as f64;
        forecast.memory = memory::trained(size.parameters, &stage.training, self.world);
        forecast.memory.extend([
            Item::new("weights as computed with", memory::casts(&size, whole)),
            Item::new("activations of a chunk", memory::activations(&size, chunk, whole) as i64),
            Item::new("the batch's vectors", own * 6 * (adapter.input + adapter.output)),
        ]);
        let (width, bytes) = (adapter.output, passes.bytes);
        forecast.memory.extend(memory::loss(Rows { global, own, width, bytes, kinds: 2 }));
        forecast.sent_per_step = vec![
            traffic::gather("embeddings", 2 * global * width * bytes, self.world),
            traffic::gather("statistics of the loss", global * 4, self.world),
            traffic::gradients(size.parameters, self.world),
        ];
        forecast.storage =
            vec![checkpoints(size.parameters, &stage.training), Item::new("adapter", 4 * size.parameters)];
        let forward = adapter.flops();
        self.operations(&mut forecast, Work { forward, all: 3.0 * forward }, &stage.training, true);
        Ok(forecast)
    }

    fn clip(&self, stage: &ClipStage) -> Result<Forecast, ForecastError> {
        let data = &stage.training.data;
        let samples: Vec<Option<u64>> = data.iter().map(|name| self.given.sets.get(name)?.samples).collect();
        let mut forecast = self.training("clip", &stage.training, &samples)?;
        let (Some(vision), Some(adapter)) = (&self.given.vision, &self.given.adapter) else { return Ok(forecast) };
        let (tower, head, passes) = (vision.config.size(), adapter.size(), Passes::of(&stage.training));
        let parts = parts(stage, &vision.config, &head, passes.bytes);
        let trained = parts.trained;
        let (global, own) = (stage.training.global_batch as i64, forecast.rank_batch.unwrap_or(0) as i64);
        let chunk = forecast.chunk.unwrap_or(1) as i64;
        let classes = tower.tokens - vision.config.patches();
        let patches = i64::from(sampler::kept_patches(vision.config.patches() as u32, stage.patch_dropout));
        let tokens = (chunk * (patches + classes)) as f64;
        // The adapter is no tower: its blocks are never run again.
        let whole = Passes { recompute: false, ..passes };
        let pixels = 3 * vision.config.image_size().pow(2);
        let blocks = if passes.recompute { 1 } else { tower.blocks };
        let of_tower = match stage.lock.whole_vision() {
            true => 0.0,
            false => memory::activations(&tower, tokens, passes) + tokens * (parts.updates_keep * blocks) as f64,
        };
        let kept = of_tower + memory::activations(&head, chunk as f64, whole);
        forecast.memory = memory::trained(trained, &stage.training, self.world);
        if stage.ema.is_some() {
            let whole = stage.objective.self_distillation.is_some() || !stage.training.optimizer.sharded;
            let share = if whole { 1 } else { i64::from(self.world.0) };
            forecast.memory.push(Item::new("the average", 4 * trained / share));
        }
        forecast.memory.extend([
            Item::new("frozen weights", 4 * parts.frozen),
            Item::new("weights as computed with", memory::casts(&tower, passes) + memory::casts(&head, whole)),
            Item::new("activations of a chunk", kept as i64),
            Item::new("the batch's pixels and text vectors", own * (pixels + 4 * adapter.input) + chunk * pixels * 8),
        ]);
        let (width, bytes) = (adapter.output, passes.bytes);
        forecast.memory.extend(memory::loss(Rows { global, own, width, bytes, kinds: 2 }));
        forecast.sent_per_step = vec![
            traffic::gather("embeddings", 2 * global * width * bytes, self.world),
            traffic::gather("statistics of the loss", global * 3 * 4, self.world),
            traffic::gradients(trained, self.world),
        ];
        let beside = 4 * (parts.frozen + if stage.ema.is_some() { trained } else { 0 });
        let mut saved = checkpoints(trained, &stage.training);
        saved.bytes += (beside * (stage.training.checkpoint.keep as i64 + 1)).cast_unsigned();
        forecast.storage = vec![saved];
        let (seen, read) = (vision.config.flops(patches), adapter.flops());
        // A teacher sees every image as well.
        let teacher = if stage.objective.self_distillation.is_some() { seen } else { 0.0 };
        let all = parts.vision_passes * seen + parts.adapter_passes * read + teacher;
        self.operations(&mut forecast, Work { forward: seen + read, all }, &stage.training, true);
        Ok(forecast)
    }

    fn eval(&self, data: &[String], chunk: u64) -> Forecast {
        let samples: Option<Vec<u64>> = data.iter().map(|name| self.given.sets.get(name)?.samples).collect();
        let samples = samples.map(|samples| samples.iter().sum::<u64>());
        let mut forecast = Forecast { samples, chunk: Some(chunk), ..Forecast::default() };
        let (Some(vision), Some(adapter)) = (&self.given.vision, &self.given.adapter) else { return forecast };
        let towers = vision.config.size().parameters + adapter.size().parameters;
        forecast.memory = vec![Item::new("weights", 4 * towers)];
        forecast.flop = samples.map(|samples| samples as f64 * vision.config.flops(vision.config.patches()));
        forecast.executed_flop = forecast.flop;
        forecast
    }

    fn export(&self) -> Forecast {
        let mut forecast = Forecast::default();
        if let (Some(vision), Some(adapter)) = (&self.given.vision, &self.given.adapter) {
            let tower = vision.config.size().parameters;
            // The tower once more, as open_clip loads it.
            forecast.storage = vec![Item::new("model", 4 * (2 * tower + adapter.size().parameters))];
        }
        forecast
    }
}

fn has_instruction(rule: &PairRule) -> bool {
    match rule {
        PairRule::ShortLong { seeks_long, seeks_short, .. } => seeks_long.is_some() || seeks_short.is_some(),
        PairRule::TwoOf { instruction } => instruction.is_some(),
        PairRule::Views => false,
    }
}

/// Operations of a sample.
#[derive(Debug, Clone, Copy)]
struct Work {
    /// Of the forward pass.
    forward: f64,
    /// Of all passes.
    all: f64,
}

impl Work {
    /// Of an LLM: the backward pass has as many for inputs, and as many again for weights that are trained.
    fn tuned(forward: f64, lora: bool) -> Self {
        Self { forward, all: forward * if lora { 2.0 } else { 3.0 } }
    }
}

/// What of the towers is trained.
#[derive(Debug, Clone, Copy)]
struct Parts {
    trained: i64,
    frozen: i64,
    /// Bytes that low-rank updates keep of a token of a block.
    updates_keep: i64,
    vision_passes: f64,
    adapter_passes: f64,
}

/// Groups at a locked tower's end that are trained all the same count as the whole tower: the upper bound.
fn parts(stage: &ClipStage, vision: &VisionConfig, head: &Size, bytes: i64) -> Parts {
    let tower = vision.size();
    let updates = stage.lora.as_ref().map(|lora| updates((&vision.linears(), tower.blocks), lora, bytes));
    let (tower_trained, vision_passes) = match updates {
        Some((parameters, _)) => (parameters, 2.0),
        None if stage.lock.whole_vision() => (0, 1.0),
        None => (tower.parameters, 3.0),
    };
    let (head_trained, adapter_passes) = if stage.lock.adapter { (0, 1.0) } else { (head.parameters, 3.0) };
    let scalars = 1 + i64::from(stage.objective.logit_bias_init.is_some());
    let own = if updates.is_some() { 0 } else { tower_trained };
    Parts {
        trained: tower_trained + head_trained + if stage.lock.logit_scale { 0 } else { scalars },
        frozen: tower.parameters - own + head.parameters - head_trained,
        updates_keep: updates.map_or(0, |(_, kept)| kept),
        vision_passes,
        adapter_passes,
    }
}

/// Parameters of a LoRA on all blocks, and bytes that its backward pass needs of a token of a block.
fn updates((linears, blocks): (&[(&str, i64, i64)], i64), lora: &Lora, bytes: i64) -> (i64, i64) {
    let rank = i64::from(lora.rank);
    let wanted = |name: &str| {
        lora.targets.is_empty() || lora.targets.iter().any(|target| target.rsplit('.').next() == Some(name))
    };
    let targeted = linears.iter().filter(|(name, ..)| wanted(name));
    let (mut parameters, mut kept) = (0, 0);
    for (_, input, output) in targeted {
        parameters += rank * (input + output);
        // With dropout each layer keeps the input that it saw, and a byte a number that says which were dropped.
        kept += rank * bytes + if lora.dropout > 0.0 { input * (bytes + 1) } else { 0 };
    }
    (parameters * blocks, kept)
}

/// Those that are kept and the one that is written, each of weights and both moments in fp32.
fn checkpoints(parameters: i64, training: &Training) -> Item {
    Item::new("checkpoints", 12 * parameters * (training.checkpoint.keep as i64 + 1))
}
