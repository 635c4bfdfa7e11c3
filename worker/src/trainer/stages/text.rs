//! The caption encoder: tokenizer, frozen LLM and pooling as one.

use crate::{
    model::{llama::Llama, llama::LlamaConfig, pooling, tokenizer::CaptionTokenizer, weights},
    torch,
    trainer::error::TrainerError,
};
use common::recipe::{Init, Precision, TextModel};
use half::bf16;
use tch::{Device, Kind, Tensor, nn};

/// A caption as tokens, and which row its vector belongs to.
pub struct Tokens {
    row: usize,
    ids: Vec<u32>,
    span: std::ops::Range<usize>,
}

/// The frozen LLM as an encoder of captions.
pub struct CaptionEncoder {
    tokenizer: CaptionTokenizer,
    llama: Llama,
    width: usize,
    device: Device,
    // Keeps the weights alive.
    _store: nn::VarStore,
}

impl CaptionEncoder {
    /// Builds the encoder of a recipe. Its weights are kept in what it computes in.
    pub fn open(spec: &TextModel, seed: u64, precision: Precision, device: Device) -> Result<Self, TrainerError> {
        let config: LlamaConfig = crate::model::config::read(&spec.folder)?;
        let tokenizer = CaptionTokenizer::open(&spec.folder, &spec.template, spec.max_length, spec.pooling)?;
        let mut store = nn::VarStore::new(device);
        store.set_kind(torch::kind(precision));
        let llama = Llama::new(&store.root(), &config, spec.attention);
        match spec.init {
            Init::Random => crate::model::init::random(&store, seed, &config),
            Init::Pretrained => {
                weights::load(&mut store, &spec.folder, weights::NameMap::Llama)?;
            }
        }
        store.freeze();
        let width = usize::try_from(config.hidden_size).expect("a width fits in usize");
        Ok(Self { tokenizer, llama, width, device, _store: store })
    }

    /// The vectors' width D.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The tokens of row `row`'s caption.
    pub fn tokens(&self, row: usize, caption: &str) -> Result<Tokens, TrainerError> {
        let encoded = self.tokenizer.encode(caption)?;
        Ok(Tokens { row, ids: encoded.ids, span: encoded.span })
    }

    /// Cuts captions into batches of like length: at most `batch_tokens` tokens each, padding included.
    pub fn batches(mut captions: Vec<Tokens>, batch_tokens: usize) -> Vec<Vec<Tokens>> {
        captions.sort_by_key(|tokens| (tokens.ids.len(), tokens.row));
        let mut batches: Vec<Vec<Tokens>> = Vec::new();
        for tokens in captions {
            // Sorted by length: the newcomer is the longest, so it sets the padded length.
            let fits = |batch: &Vec<Tokens>| (batch.len() + 1) * tokens.ids.len() <= batch_tokens;
            match batches.last_mut() {
                Some(batch) if fits(batch) => batch.push(tokens),
                _ => batches.push(vec![tokens]),
            }
        }
        batches
    }

    /// Encodes a batch and puts each vector into its row of `out` ([rows, width]).
    pub fn encode_into(&self, batch: &[Tokens], out: &mut [bf16]) -> Result<(), TrainerError> {
        let length = batch.iter().map(|tokens| tokens.ids.len()).max().unwrap_or(0);
        let mut ids = vec![0i64; batch.len() * length];
        let mut keep = vec![false; batch.len() * length];
        let mut span = vec![false; batch.len() * length];
        for (i, tokens) in batch.iter().enumerate() {
            // Left padding, as the reference encodes.
            let start = (i + 1) * length - tokens.ids.len();
            for (j, id) in tokens.ids.iter().enumerate() {
                ids[start + j] = i64::from(*id);
                keep[start + j] = true;
                span[start + j] = tokens.span.contains(&j);
            }
        }
        let shape = [batch.len() as i64, length as i64];
        let tensor = |values: Tensor| values.view(shape).to_device(self.device);
        let (ids, keep, span) =
            (tensor(Tensor::from_slice(&ids)), tensor(Tensor::from_slice(&keep)), tensor(Tensor::from_slice(&span)));
        let pooled = tch::no_grad(|| pooling::mean(&self.llama.forward(&ids, &keep), &span));
        let numbers: Vec<f32> = Vec::try_from(pooled.to_kind(Kind::Float).to_device(Device::Cpu).flatten(0, -1))?;
        for (tokens, vector) in batch.iter().zip(numbers.chunks_exact(self.width)) {
            let row = &mut out[tokens.row * self.width..][..self.width];
            row.iter_mut().zip(vector).for_each(|(to, from)| *to = bf16::from_f32(*from));
        }
        Ok(())
    }
}
