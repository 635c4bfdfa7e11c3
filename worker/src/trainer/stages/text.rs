//! The caption encoder: tokenizer, frozen LLM and pooling as one.

use crate::{
    model::{llama::Llama, llama::LlamaConfig, pooling, tokenizer::CaptionTokenizer, weights},
    torch,
    trainer::error::TrainerError,
};
use common::recipe::{Init, Precision, TextModel};
use half::bf16;
use tch::{Device, Tensor, nn};

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

    /// Cuts captions into batches of like length: at most `batch_tokens` tokens each, or one caption.
    pub fn batches(mut captions: Vec<Tokens>, batch_tokens: usize) -> Vec<Vec<Tokens>> {
        captions.sort_by_key(|tokens| (tokens.ids.len(), tokens.row));
        let mut batches: Vec<Vec<Tokens>> = Vec::new();
        let mut room = 0;
        for tokens in captions {
            let length = tokens.ids.len();
            match batches.last_mut() {
                Some(batch) if length <= room => batch.push(tokens),
                _ => {
                    batches.push(vec![tokens]);
                    room = batch_tokens.max(length);
                }
            }
            room -= length;
        }
        batches
    }

    /// Floating-point operations of a batch.
    pub fn flops(&self, batch: &[Tokens]) -> f64 {
        self.llama.flops(&lengths(batch))
    }

    /// Encodes a batch and puts each vector into its row of `out` ([rows, width]).
    pub fn encode_into(&self, batch: &[Tokens], out: &mut [bf16]) -> Result<(), TrainerError> {
        let ids: Vec<i64> = batch.iter().flat_map(|tokens| tokens.ids.iter().map(|id| i64::from(*id))).collect();
        let ids = Tensor::from_slice(&ids).to_device(self.device);
        let mut start = 0;
        let span = |tokens: &Tokens| {
            let span = start + tokens.span.start as i64..start + tokens.span.end as i64;
            start += tokens.ids.len() as i64;
            span
        };
        let spans: Vec<_> = batch.iter().map(span).collect();
        let pooled = tch::no_grad(|| pooling::mean(&self.llama.forward(&ids, &lengths(batch)), &spans));
        let numbers: Vec<f32> = Vec::try_from(pooled.to_device(Device::Cpu).flatten(0, -1))?;
        for (tokens, vector) in batch.iter().zip(numbers.chunks_exact(self.width)) {
            let row = &mut out[tokens.row * self.width..][..self.width];
            row.iter_mut().zip(vector).for_each(|(to, from)| *to = bf16::from_f32(*from));
        }
        Ok(())
    }
}

fn lengths(batch: &[Tokens]) -> Vec<i64> {
    batch.iter().map(|tokens| tokens.ids.len() as i64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::recipe::{Attention, Pooling};
    use std::path::Path;

    #[test]
    fn batches_are_of_like_length_and_hold_every_caption_once() {
        let tokens = |(row, length): (usize, &usize)| Tokens { row, ids: vec![1; *length], span: 0..*length };
        let captions = [5, 1, 40, 2, 7, 7, 1].iter().enumerate().map(tokens).collect();
        let batches = CaptionEncoder::batches(captions, 16);
        let rows = |batch: &Vec<Tokens>| batch.iter().map(|tokens| tokens.row).collect::<Vec<_>>();
        assert_eq!(batches.iter().map(rows).collect::<Vec<_>>(), [vec![1, 6, 3, 0, 4], vec![5], vec![2]]);
    }

    #[test]
    fn a_captions_vector_is_the_same_alone_and_in_a_batch() {
        let spec = TextModel {
            folder: Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/models/llama-tiny"),
            init: Init::Random,
            attention: Attention::Bidirectional,
            template: "{caption}".to_owned(),
            pooling: Pooling::Mean,
            max_length: 96,
        };
        let encoder = CaptionEncoder::open(&spec, 1, Precision::Fp32, Device::Cpu).unwrap();
        let words = ["a red fox", "in the snow", "under a tree that has lost its leaves", "two", "looking at you"];
        let caption =
            |i: usize| (0..=i % 17).map(|j| words[(i * 7 + j * 3) % words.len()]).collect::<Vec<_>>().join(" ");
        let tokens = |row: usize| encoder.tokens(row, &caption(row)).unwrap();
        let width = encoder.width();
        let mut together = vec![bf16::ZERO; 90 * width];
        for batch in CaptionEncoder::batches((0..90).map(tokens).collect(), 512) {
            encoder.encode_into(&batch, &mut together).unwrap();
        }
        for row in 0..90 {
            let mut alone = vec![bf16::ZERO; width];
            encoder.encode_into(&[Tokens { row: 0, ..tokens(row) }], &mut alone).unwrap();
            let apart = |(a, b): (&bf16, &bf16)| f64::from(a.to_f32() - b.to_f32()).powi(2);
            let distance: f64 = alone.iter().zip(&together[row * width..]).map(apart).sum();
            let size: f64 = alone.iter().map(|a| f64::from(a.to_f32()).powi(2)).sum();
            assert!(distance <= 1e-4 * size, "row {row}: {distance} of {size}");
        }
    }
}
