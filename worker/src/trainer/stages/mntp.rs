//! Stage `mntp`: the LLM, now seeing both ways, predicts masked tokens of documents and captions from the position before
//! them.

use super::tuning::{Tuning, part_of, seed_chunk, whole_chunk};
use crate::{
    data::{BrokenLimit, BrokenSample, Documents, Places},
    model::{llama::Head, tokenizer::TextTokenizer},
    objective::masked,
    text::{Blocks, Corpus, MaskRule, Masked},
    torch::transfer::numbers,
    trainer::{
        ahead::Ahead,
        context::{Context, Outcome},
        error::TrainerError,
        step::{
            StepBegun,
            mntp::{MaskedEncoder, mntp_step},
        },
        training::{Source, Taken, Task, Training},
    },
};
use common::{
    ids::Step,
    recipe::{self, MntpStage, TextKind},
    sampler::Order,
};
use std::{ops::Range, sync::Arc, time::Duration};
use tch::{Device, Tensor};

/// Batches of tokens made ahead.
const PREFETCH: usize = 4;

/// Runs the stage.
pub fn run(stage: &MntpStage, context: &mut Context<'_>) -> Result<Outcome, TrainerError> {
    let recipe = &context.plan.recipe;
    let tuning = Tuning::begin(&stage.training, stage.lora.as_ref(), context)?;
    let spec = tuning.spec();
    let head = Head::open(&tuning.llm.llama, &spec.folder, spec.init)?;
    let tokenizer = Arc::new(TextTokenizer::open(&spec.folder)?.within(tuning.llm.vocabulary())?);
    let rule = MaskRule::new(&stage.mask, &tokenizer, tuning.llm.vocabulary())?;
    let blocks = blocks(stage, &tokenizer, context)?;
    let lengths: Vec<u64> = blocks.iter().map(Blocks::len).collect();
    let order = recipe.order(&stage.training, &lengths).map_err(|error| TrainerError::Plan(error.to_string()))?;
    let parameters = tuning.parameters(&stage.training.optimizer, context)?;
    let described = stage.training.data.iter().zip(&blocks).map(|(name, blocks)| Source {
        limit: BrokenLimit { name: name.clone(), samples: blocks.len(), share: 0.0 },
        fingerprint: blocks.fingerprint().to_owned(),
    });
    let mut training = Training::prepare(&stage.training, context, described.collect(), order, parameters)?;
    let maker = Maker { blocks, order: training.order().clone(), slots: training.slots(), rule, seed: recipe.seed };
    let mut texts = MaskedTexts {
        block: i64::from(stage.block),
        seed: recipe.seed,
        device: context.device,
        training: stage.training.clone(),
        batches: Ahead::start(training.steps(), PREFETCH, move |step| maker.batch(Step(step))),
        tuning,
        head,
    };
    let outcome = training.run(&mut texts)?;
    if !outcome.stopped && context.speaks() {
        texts.tuning.write(Some(&texts.head), context)?;
    }
    Ok(outcome)
}

/// The stage's blocks by data set.
fn blocks(
    stage: &MntpStage,
    tokenizer: &Arc<TextTokenizer>,
    context: &Context<'_>,
) -> Result<Vec<Blocks>, TrainerError> {
    let recipe = &context.plan.recipe;
    let mut all = Vec::new();
    for (source, name) in (0..).zip(&stage.training.data) {
        let corpus = match recipe.text.get(name) {
            Some(set) => {
                let TextKind::Documents { column } = &set.kind else {
                    return Err(TrainerError::Plan(format!("data set `{name}` has no documents")));
                };
                context.activity(&format!("reading the texts of {name}"));
                Corpus::Documents(Documents::open(context.storage, &set.files, column, &Places::new(&set.index))?)
            }
            None => {
                let data = context.datasets(std::slice::from_ref(name))?.remove(0);
                Corpus::Captions { data, seed: recipe.seed, source }
            }
        };
        context.activity(&format!("counting the tokens of {name}"));
        let blocks = Blocks::open(corpus, tokenizer.clone(), (stage.block, stage.remainder), context.threads)?;
        if blocks.is_empty() {
            let (tokens, block) = (blocks.dropped(), stage.block);
            return Err(TrainerError::Plan(format!(
                "data set `{name}` makes no block: it has {tokens} tokens, and `block` of stage `mntp` is {block}; lower it, or \
                 leave the data set out"
            )));
        }
        tracing::info!(data = name, blocks = blocks.len(), dropped_tokens = blocks.dropped(), "packed");
        all.push(blocks);
    }
    Ok(all)
}

/// Makes a rank's part of global batches.
struct Maker {
    blocks: Vec<Blocks>,
    order: Arc<Order>,
    slots: Range<u64>,
    rule: MaskRule,
    seed: u64,
}

impl Maker {
    fn batch(&self, step: Step) -> Result<Vec<Masked>, TrainerError> {
        let block = |draw: common::sampler::Draw| {
            let ids = self.blocks[draw.source].tokens(draw.index.0)?;
            Ok(self.rule.apply(ids, self.seed, draw.source as u32, draw.index, draw.epoch))
        };
        self.order.draws(step, self.slots.clone()).map(block).collect()
    }
}

/// Masked blocks as the training's task.
struct MaskedTexts {
    tuning: Tuning,
    head: Head,
    block: i64,
    seed: u64,
    device: Device,
    training: recipe::Training,
    batches: Ahead<Vec<Masked>>,
}

impl Task for MaskedTexts {
    type Batch = Vec<Masked>;

    fn next(&mut self) -> Option<Result<Vec<Masked>, TrainerError>> {
        self.batches.next()
    }

    fn waited(&self) -> Duration {
        self.batches.waited()
    }

    fn broken<'b>(&self, _: &'b Vec<Masked>) -> &'b [BrokenSample] {
        &[]
    }

    fn flops(&self, batch: &Vec<Masked>) -> f64 {
        let lengths = vec![self.block; batch.len()];
        let targets: usize = batch.iter().map(|masked| masked.targets.len()).sum();
        self.tuning.passes() * (self.tuning.llm.llama.flops(&lengths) + self.head.flops(targets as i64))
    }

    fn step(&mut self, batch: &Vec<Masked>, taken: Taken<'_>) -> Result<StepBegun, TrainerError> {
        let Taken { step, chunks, settings, collective, parameters, poisoned, timeline, .. } = taken;
        let encoder = Chunks { texts: self, blocks: batch, chunks, step, poisoned };
        mntp_step(&encoder, collective, parameters, &settings, timeline)
    }
}

/// A local slice in chunks.
struct Chunks<'a> {
    texts: &'a MaskedTexts,
    blocks: &'a [Masked],
    chunks: &'a [Range<u64>],
    step: Step,
    poisoned: bool,
}

impl Chunks<'_> {
    fn blocks(&self, chunk: usize) -> &[Masked] {
        let (first, slots) = (self.chunks[0].start, &self.chunks[chunk]);
        &self.blocks[(slots.start - first) as usize..(slots.end - first) as usize]
    }
}

impl MaskedEncoder for Chunks<'_> {
    fn chunks(&self) -> usize {
        self.chunks.len()
    }

    fn masked(&self) -> i64 {
        self.blocks.iter().map(|block| block.targets.len() as i64).sum()
    }

    fn loss_sum(&self, chunk: usize) -> Tensor {
        let MaskedTexts { tuning, head, block, seed, device, training, .. } = self.texts;
        if tuning.drops() {
            let (piece, whole) = (&self.chunks[chunk], whole_chunk(&self.chunks[chunk], training));
            seed_chunk(*seed, self.step, whole.start);
            tuning.see(part_of(piece, &whole, *block, *device));
        }
        let blocks = self.blocks(chunk);
        let on_device = |values: Vec<i64>| numbers(&values, *device);
        let ids = blocks.iter().flat_map(|masked| &masked.ids).map(|id| i64::from(*id)).collect();
        let places = (0..).zip(blocks).flat_map(|(number, masked)| {
            // The position before a masked one predicts it.
            masked.targets.iter().map(move |(place, _)| number * block + i64::from(*place) - 1)
        });
        let tokens = blocks.iter().flat_map(|masked| &masked.targets).map(|(_, token)| i64::from(*token)).collect();
        let hidden_TD = tuning.llm.llama.forward(&on_device(ids), &vec![*block; blocks.len()]);
        let before_MD = hidden_TD.index_select(0, &on_device(places.collect()));
        let sum = masked::cross_entropy_sum(&head.forward(&before_MD), &on_device(tokens));
        if self.poisoned { sum * f64::NAN } else { sum }
    }
}
