//! Stage `contrast`: the LLM learns to tell captions apart: a query seeks its positive among those of all ranks, and among
//! texts that are nobody's.

use super::{
    llm,
    tuning::{Tuning, seed_chunk, whole_chunk},
};
use crate::{
    data::{BrokenLimit, BrokenSample, Places, SampleRequest, SkipReason},
    model::tokenizer::{CaptionTokenizer, Encoded},
    text::{EncodedPair, PairFile, PairRule, PairSource},
    torch::transfer::numbers,
    trainer::{
        ahead::Ahead,
        context::{Context, Outcome},
        error::TrainerError,
        step::{
            StepBegun,
            contrast::{Contrast, TextEncoder, contrast_step},
        },
        training::{Source, Taken, Task, Training},
    },
};
use common::{
    ids::Step,
    recipe::{self, ContrastStage, TextKind},
    sampler::{Draw, Order},
};
use std::{ops::Range, sync::Arc, time::Duration};
use tch::{Device, Tensor};

/// Batches of tokens made ahead.
const PREFETCH: usize = 4;

/// Runs the stage.
pub fn run(stage: &ContrastStage, context: &mut Context<'_>) -> Result<Outcome, TrainerError> {
    let recipe = &context.plan.recipe;
    let (sources, limits) = sources(stage, context)?;
    let tuning = Tuning::begin(&stage.training, stage.lora.as_ref(), context)?;
    let spec = tuning.spec();
    let tokenizer = CaptionTokenizer::open(&spec.folder, &spec.template, spec.max_length, spec.pooling)?;
    let tokenizer = tokenizer.within(tuning.llm.vocabulary())?;
    let lengths: Vec<u64> = sources.iter().map(PairSource::len).collect();
    let order = recipe.order(&stage.training, &lengths).map_err(|error| TrainerError::Plan(error.to_string()))?;
    let parameters = tuning.parameters(&stage.training.optimizer, context)?;
    let described = sources.iter().zip(limits);
    let described = described.map(|(source, limit)| Source { limit, fingerprint: source.fingerprint() }).collect();
    let mut training = Training::prepare(&stage.training, context, described, order, parameters)?;
    let negatives = stage.negatives && sources.iter().any(PairSource::has_negatives);
    let own = training.slots();
    // What a text drops is drawn for its whole chunk: of the chunks that a rank's border cuts, the other texts' lengths are needed.
    let slots = if tuning.drops() {
        let whole = |slot: u64| whole_chunk(&(slot..slot + 1), &stage.training);
        whole(own.start).start..whole(own.end - 1).end
    } else {
        own.clone()
    };
    let maker = Maker {
        sources,
        order: training.order().clone(),
        slots: slots.clone(),
        own: own.clone(),
        tokenizer,
        seed: recipe.seed,
    };
    let mut texts = Texts {
        scale: stage.scale,
        negatives,
        seed: recipe.seed,
        device: context.device,
        training: stage.training.clone(),
        own: (own.start - slots.start) as usize..(own.end - slots.start) as usize,
        first: slots.start,
        batches: Ahead::start(training.steps(), PREFETCH, move |step| maker.batch(Step(step))),
        tuning,
    };
    let outcome = training.run(&mut texts)?;
    if !outcome.stopped && context.speaks() {
        texts.tuning.write(None, context)?;
    }
    Ok(outcome)
}

/// The stage's pairs by data set, and how many may be broken.
fn sources(stage: &ContrastStage, context: &Context<'_>) -> Result<(Vec<PairSource>, Vec<BrokenLimit>), TrainerError> {
    let (recipe, mut sources) = (&context.plan.recipe, Vec::new());
    let mut limits = Vec::new();
    for name in &stage.training.data {
        if let Some(set) = recipe.text.get(name) {
            let TextKind::Pairs { instructions } = &set.kind else {
                return Err(TrainerError::Plan(format!("data set `{name}` has no pairs")));
            };
            context.activity(&format!("reading the pairs of {name}"));
            let places = Places::new(&set.index);
            let file = PairFile::open(context.storage, &set.files, instructions.clone(), &places)?;
            let source = PairSource::File(Box::new(file));
            limits.push(BrokenLimit { name: name.clone(), samples: source.len(), share: set.broken_limit });
            sources.push(source);
            continue;
        }
        let data = context.datasets(std::slice::from_ref(name))?.remove(0);
        let rule = stage.pairs.get(name).map(|rule| PairRule::of(rule, data.columns()));
        let rule =
            rule.ok_or_else(|| TrainerError::Plan(format!("no rule says how captions of `{name}` make pairs")))?;
        limits.push(data.limit());
        sources.push(PairSource::Captions { data, rule });
    }
    Ok((sources, limits))
}

/// Makes a rank's part of global batches.
struct Maker {
    sources: Vec<PairSource>,
    order: Arc<Order>,
    /// Those whose texts are needed.
    slots: Range<u64>,
    /// The rank's own among them.
    own: Range<u64>,
    tokenizer: CaptionTokenizer,
    seed: u64,
}

/// A rank's part of a global batch, with the pairs around it that complete its first and its last chunk where dropout wants them.
struct PairBatch {
    pairs: Vec<EncodedPair>,
    /// Of the rank's own.
    broken: Vec<BrokenSample>,
}

impl Maker {
    fn batch(&self, step: Step) -> Result<PairBatch, TrainerError> {
        let mut batch = PairBatch { pairs: Vec::new(), broken: Vec::new() };
        for (draw, slot) in self.order.draws(step, self.slots.clone()).zip(self.slots.clone()) {
            let mut broken = Vec::new();
            batch.pairs.push(self.pair(draw, &mut broken)?);
            if self.own.contains(&slot) {
                batch.broken.append(&mut broken);
            }
        }
        Ok(batch)
    }

    /// The pair of a slot, or of what stands in for it when one of its texts is empty.
    fn pair(&self, draw: Draw, broken: &mut Vec<BrokenSample>) -> Result<EncodedPair, TrainerError> {
        let (source, mut sample) = (&self.sources[draw.source], draw.index);
        for attempt in 0.. {
            if let Some(pair) = source.pair(self.seed, draw.source as u32, sample, draw.epoch)? {
                return Ok(pair.encode(&self.tokenizer)?);
            }
            if attempt == 0 {
                let wanted = SampleRequest { source: draw.source as u32, index: draw.index, epoch: draw.epoch };
                let (key, detail) = (source.key(draw.index)?, "its query or its positive is empty".to_owned());
                broken.push(BrokenSample { wanted, key, reason: SkipReason::EmptyCaption, detail });
            }
            match self.order.reserve(draw.source, draw.epoch, draw.index, attempt) {
                Some(reserve) => sample = reserve,
                None => break,
            }
        }
        let key = source.key(draw.index)?;
        Err(TrainerError::Plan(format!(
            "the pair {key} has an empty text, and so has everything that could stand in for it"
        )))
    }
}

/// Pairs of texts as the training's task.
struct Texts {
    tuning: Tuning,
    scale: f64,
    negatives: bool,
    seed: u64,
    device: Device,
    training: recipe::Training,
    /// The rank's own among a batch's pairs, and the slot of the first pair.
    own: Range<usize>,
    first: u64,
    batches: Ahead<PairBatch>,
}

impl Texts {
    /// The texts of some pairs: queries, positives, negatives. A pair without a negative has its positive there, which the
    /// loss does not see.
    fn texts<'a>(&self, pairs: &'a [EncodedPair]) -> Vec<&'a Encoded> {
        let negatives = if self.negatives { pairs } else { &[] };
        let negatives = negatives.iter().map(|pair| pair.negative.as_ref().unwrap_or(&pair.positive));
        let queries = pairs.iter().map(|pair| &pair.query);
        queries.chain(pairs.iter().map(|pair| &pair.positive)).chain(negatives).collect()
    }
}

impl Task for Texts {
    type Batch = PairBatch;

    fn next(&mut self) -> Option<Result<PairBatch, TrainerError>> {
        self.batches.next()
    }

    fn waited(&self) -> Duration {
        self.batches.waited()
    }

    fn broken<'b>(&self, batch: &'b PairBatch) -> &'b [BrokenSample] {
        &batch.broken
    }

    fn flops(&self, batch: &PairBatch) -> f64 {
        let lengths: Vec<i64> =
            self.texts(&batch.pairs[self.own.clone()]).iter().map(|text| text.ids.len() as i64).collect();
        self.tuning.passes() * self.tuning.llm.llama.flops(&lengths)
    }

    fn step(&mut self, batch: &PairBatch, taken: Taken<'_>) -> Result<StepBegun, TrainerError> {
        let lacking: Vec<bool> = batch.pairs[self.own.clone()].iter().map(|pair| pair.negative.is_none()).collect();
        let lacking_R = self.negatives.then(|| numbers(&lacking, self.device));
        let Taken { step, chunks, cut, settings, collective, parameters, poisoned, timeline } = taken;
        let encoder = Chunks { texts: self, pairs: &batch.pairs, chunks, step, poisoned };
        let contrast = Contrast { scale: self.scale, lacking_R: lacking_R.as_ref() };
        contrast_step(&encoder, cut, contrast, collective, parameters, &settings, timeline)
    }
}

/// A local slice in chunks.
struct Chunks<'a> {
    texts: &'a Texts,
    pairs: &'a [EncodedPair],
    chunks: &'a [Range<u64>],
    step: Step,
    poisoned: bool,
}

impl TextEncoder for Chunks<'_> {
    fn encode(&self, chunk: usize) -> Tensor {
        let (texts, piece) = (self.texts, &self.chunks[chunk]);
        let of = |slots: &Range<u64>| {
            let place = |slot: u64| (slot - texts.first) as usize;
            texts.texts(&self.pairs[place(slots.start)..place(slots.end)])
        };
        if texts.tuning.drops() {
            let whole = whole_chunk(piece, &texts.training);
            seed_chunk(texts.seed, self.step, whole.start);
            let pairs = whole.end - whole.start;
            // Texts of one role stand together.
            let own = |text: usize| piece.contains(&(whole.start + text as u64 % pairs));
            let part = (*piece != whole).then(|| llm::part_of(&of(&whole), own, texts.device));
            texts.tuning.see(part);
        }
        let vectors = texts.tuning.llm.vectors(&of(piece));
        if self.poisoned { vectors * f64::NAN } else { vectors }
    }
}
