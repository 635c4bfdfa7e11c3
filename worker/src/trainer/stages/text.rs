//! The caption encoder: a tokenizer and a frozen network that reads its tokens, as one. Such a network is the LLM with its pooling,
//! or CLIP's text tower.

use super::llm::{Kinds, Llm};
use crate::{
    model::{
        ModelError,
        clip_text::{ClipText, ClipTextConfig},
        config, init,
        tokenizer::{CaptionTokenizer, ClipTokenizer, Encoded},
        weights,
    },
    torch,
    trainer::error::TrainerError,
};
use common::recipe::{Init, Precision, TeacherModel, TextModel};
use half::bf16;
use tch::{Device, Tensor, nn};

/// A caption as tokens, and which row its vector belongs to.
pub struct Tokens {
    row: usize,
    text: Encoded,
}

/// A frozen network that reads texts.
trait Reader {
    /// The vectors' width D.
    fn width(&self) -> usize;
    fn encode(&self, caption: &str) -> Result<Encoded, ModelError>;
    /// Operations of texts of these lengths.
    fn flops(&self, lengths: &[i64]) -> f64;
    /// [N, D] fp32, in the order given.
    fn vectors(&self, texts: &[&Encoded]) -> Tensor;
}

/// The LLM, with the mean over each caption's span.
struct LlmReader {
    tokenizer: CaptionTokenizer,
    llm: Llm,
}

impl Reader for LlmReader {
    fn width(&self) -> usize {
        self.llm.width()
    }

    fn encode(&self, caption: &str) -> Result<Encoded, ModelError> {
        self.tokenizer.encode(caption)
    }

    fn flops(&self, lengths: &[i64]) -> f64 {
        self.llm.llama.flops(lengths)
    }

    fn vectors(&self, texts: &[&Encoded]) -> Tensor {
        self.llm.vectors(texts)
    }
}

/// CLIP's text tower.
struct TowerReader {
    tokenizer: ClipTokenizer,
    tower: ClipText,
    width: usize,
    /// Of the tower's weights.
    _store: nn::VarStore,
}

impl Reader for TowerReader {
    fn width(&self) -> usize {
        self.width
    }

    fn encode(&self, caption: &str) -> Result<Encoded, ModelError> {
        self.tokenizer.encode(caption)
    }

    fn flops(&self, lengths: &[i64]) -> f64 {
        self.tower.flops(lengths)
    }

    fn vectors(&self, texts: &[&Encoded]) -> Tensor {
        let ids: Vec<&[u32]> = texts.iter().map(|text| text.ids.as_slice()).collect();
        self.tower.forward(&ids).to_kind(tch::Kind::Float)
    }
}

/// A frozen network as an encoder of captions.
pub struct CaptionEncoder(Box<dyn Reader>);

impl CaptionEncoder {
    /// Builds the encoder of a recipe: its LLM. Its weights are kept in what it computes in.
    pub fn open(spec: &TextModel, seed: u64, precision: Precision, device: Device) -> Result<Self, TrainerError> {
        let tokenizer = CaptionTokenizer::open(&spec.folder, &spec.template, spec.max_length, spec.pooling)?;
        let kind = torch::kind(precision);
        let mut llm = Llm::open(spec, seed, Kinds { weights: kind, compute: kind }, device)?;
        llm.store.freeze();
        let tokenizer = tokenizer.within(llm.vocabulary())?;
        Ok(Self(Box::new(LlmReader { tokenizer, llm })))
    }

    /// Builds the recipe's teacher: CLIP's text tower.
    pub fn teacher(spec: &TeacherModel, seed: u64, precision: Precision, device: Device) -> Result<Self, TrainerError> {
        let config: ClipTextConfig = config::read(&spec.folder)?;
        let tokenizer = ClipTokenizer::open(&spec.folder, &config)?;
        let mut store = nn::VarStore::new(device);
        store.set_kind(torch::kind(precision));
        let tower = ClipText::new(&store.root(), &config);
        match spec.init {
            Init::Random => init::random(&store, seed, &config),
            Init::Pretrained => weights::load(&mut store, &spec.folder, weights::NameMap::ClipText)?,
        }
        store.freeze();
        let width = usize::try_from(config.projection_dim).expect("a width fits in usize");
        Ok(Self(Box::new(TowerReader { tokenizer, tower, width, _store: store })))
    }

    /// The vectors' width D.
    pub fn width(&self) -> usize {
        self.0.width()
    }

    /// The tokens of row `row`'s caption.
    pub fn tokens(&self, row: usize, caption: &str) -> Result<Tokens, TrainerError> {
        Ok(Tokens { row, text: self.0.encode(caption)? })
    }

    /// Cuts captions into batches of like length: at most `batch_tokens` tokens each, or one caption.
    pub fn batches(mut captions: Vec<Tokens>, batch_tokens: usize) -> Vec<Vec<Tokens>> {
        captions.sort_by_key(|tokens| tokens.row);
        by_tokens(captions, |tokens| tokens.text.ids.len(), batch_tokens)
    }

    /// Floating-point operations of a batch.
    pub fn flops(&self, batch: &[Tokens]) -> f64 {
        let lengths: Vec<i64> = batch.iter().map(|tokens| tokens.text.ids.len() as i64).collect();
        self.0.flops(&lengths)
    }

    /// Encodes a batch and puts each vector into its row of `out` ([rows, width]).
    pub fn encode_into(&self, batch: &[Tokens], out: &mut [bf16]) -> Result<(), TrainerError> {
        let (width, texts) = (self.width(), batch.iter().map(|tokens| &tokens.text).collect::<Vec<_>>());
        let vectors_ND = tch::no_grad(|| self.0.vectors(&texts));
        let numbers: Vec<f32> = Vec::try_from(vectors_ND.to_device(Device::Cpu).flatten(0, -1))?;
        for (tokens, vector) in batch.iter().zip(numbers.chunks_exact(width)) {
            let row = &mut out[tokens.row * width..][..width];
            row.iter_mut().zip(vector).for_each(|(to, from)| *to = bf16::from_f32(*from));
        }
        Ok(())
    }
}

/// Cuts texts into batches of like length: at most `batch_tokens` tokens each, or one text. Those of one length stay in order.
pub fn by_tokens<T>(mut texts: Vec<T>, length: impl Fn(&T) -> usize, batch_tokens: usize) -> Vec<Vec<T>> {
    texts.sort_by_key(&length);
    let mut batches: Vec<Vec<T>> = Vec::new();
    let mut room = 0;
    for text in texts {
        let length = length(&text);
        match batches.last_mut() {
            Some(batch) if length <= room => batch.push(text),
            _ => {
                batches.push(vec![text]);
                room = batch_tokens.max(length);
            }
        }
        room -= length;
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::recipe::{Attention, Init, Pooling};
    use std::path::Path;

    #[test]
    fn batches_are_of_like_length_and_hold_every_caption_once() {
        let tokens =
            |(row, length): (usize, &usize)| Tokens { row, text: Encoded { ids: vec![1; *length], span: 0..*length } };
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
            adapters: Vec::new(),
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
