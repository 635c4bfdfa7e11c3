//! The LLM of a recipe as a stage finds it: its weights with what was merged into them, in the kinds that the stage asks for.

use crate::{
    model::{
        config,
        llama::{Llama, LlamaConfig},
        lora::{self, Lora, Part},
        pooling,
        tokenizer::Encoded,
        weights,
    },
    torch::transfer::numbers,
    trainer::error::TrainerError,
};
use common::recipe::{Init, TextModel};
use tch::{Device, Kind, Tensor, nn};

/// What numbers are kept and computed in.
#[derive(Debug, Clone, Copy)]
pub struct Kinds {
    /// The weights.
    pub weights: Kind,
    /// Forward and backward passes.
    pub compute: Kind,
}

/// The LLM.
#[derive(Debug)]
pub struct Llm {
    /// The body.
    pub llama: Llama,
    /// Its sizes.
    pub config: LlamaConfig,
    /// Its weights.
    pub store: nn::VarStore,
}

impl Llm {
    /// Builds the LLM and merges its adapters, one after the other.
    ///
    /// # Errors
    /// When a folder lacks something, or an adapter is of another model.
    pub fn open(spec: &TextModel, seed: u64, kinds: Kinds, device: Device) -> Result<Self, TrainerError> {
        let config: LlamaConfig = config::read(&spec.folder)?;
        let mut store = nn::VarStore::new(device);
        store.set_kind(kinds.weights);
        let mut llama = Llama::new(&store.root(), &config, spec.attention);
        match spec.init {
            Init::Random => crate::model::init::random(&store, seed, &config),
            Init::Pretrained => weights::load(&mut store, &spec.folder, weights::NameMap::Llama)?,
        }
        for folder in &spec.adapters {
            Lora::read(&mut llama, folder)?;
            lora::merge(&mut llama);
        }
        llama.compute_in(kinds.compute);
        Ok(Self { llama, config, store })
    }

    /// Rows of the token table.
    pub fn vocabulary(&self) -> u32 {
        u32::try_from(self.config.vocab_size).expect("a vocabulary has fewer than 2^32 tokens")
    }

    /// The vectors' width D.
    pub fn width(&self) -> usize {
        usize::try_from(self.config.hidden_size).expect("a width fits in usize")
    }

    /// The mean over each text's span: [N, D] fp32, in the order given. Texts are read in order of length: attention goes over
    /// runs of texts of one length.
    pub fn vectors(&self, texts: &[&Encoded]) -> Tensor {
        let device = self.store.device();
        let sorted = by_length(texts);
        let ids: Vec<i64> = sorted.iter().flat_map(|text| &texts[*text].ids).map(|id| i64::from(*id)).collect();
        let lengths: Vec<i64> = sorted.iter().map(|text| texts[*text].ids.len() as i64).collect();
        let mut start = 0;
        let span = |text: &usize| {
            let Encoded { ids, span } = texts[*text];
            let span = start + span.start as i64..start + span.end as i64;
            start += ids.len() as i64;
            span
        };
        let spans: Vec<_> = sorted.iter().map(span).collect();
        let hidden_TD = self.llama.forward(&numbers(&ids, device), &lengths);
        let pooled_ND = pooling::mean(&hidden_TD, &spans);
        let mut places = vec![0i64; texts.len()];
        (0..).zip(&sorted).for_each(|(place, text)| places[*text] = place);
        pooled_ND.index_select(0, &numbers(&places, device))
    }
}

/// The order in which texts are read.
fn by_length(texts: &[&Encoded]) -> Vec<usize> {
    let mut sorted: Vec<usize> = (0..texts.len()).collect();
    sorted.sort_by_key(|text| texts[*text].ids.len());
    sorted
}

/// Which tokens of a chunk's texts are those of the texts that are `own`, read as [`Llm::vectors`] reads all of them, or these alone.
pub fn part_of(chunk: &[&Encoded], own: impl Fn(usize) -> bool, device: Device) -> Part {
    let (mut rows, mut mine) = (0, Vec::new());
    for text in by_length(chunk) {
        let tokens = rows..rows + chunk[text].ids.len() as i64;
        rows = tokens.end;
        if own(text) {
            mine.extend(tokens);
        }
    }
    Part { rows, own: numbers(&mine, device) }
}
