//! OpenAI's CLIP text transformer (Radford et al. 2021) with the parameter names of Hugging Face's `CLIPTextModelWithProjection`.
//!
//! Shapes: B texts, L tokens of the longest, D width, P shared width.

mod config;

pub use config::ClipTextConfig;

use super::{
    layers::{LayerNorm, Linear, Widths},
    vit::Block,
};
use crate::torch::transfer::numbers;
use tch::{Kind, Tensor, nn};

#[derive(Debug)]
struct Embeddings {
    token_embedding: Tensor,
    position_embedding: Tensor,
}

impl Embeddings {
    fn new(path: &nn::Path, config: &ClipTextConfig) -> Self {
        let (width, zero) = (config.hidden_size, nn::Init::Const(0.0));
        Self {
            token_embedding: (path / "token_embedding").var("weight", &[config.vocab_size, width], zero),
            position_embedding: (path / "position_embedding").var(
                "weight",
                &[config.max_position_embeddings, width],
                zero,
            ),
        }
    }

    fn forward(&self, ids_BL: &Tensor) -> Tensor {
        let x_BLD = Tensor::embedding(&self.token_embedding, ids_BL, -1, false, false);
        x_BLD + self.position_embedding.narrow(0, 0, ids_BL.size()[1])
    }
}

/// The text tower with its projection into the shared space. It computes in the kind of its weights.
#[derive(Debug)]
pub struct ClipText {
    embeddings: Embeddings,
    layers: Vec<Block>,
    final_layer_norm: LayerNorm,
    text_projection: Linear,
    config: ClipTextConfig,
}

impl ClipText {
    /// Adds the tower's parameters below `path`; `init::random` or `weights::load` fills them.
    pub fn new(path: &nn::Path, config: &ClipTextConfig) -> Self {
        let root = path / "text_model";
        let (layers, width) = (&root / "encoder" / "layers", config.hidden_size);
        let block = config.block();
        Self {
            embeddings: Embeddings::new(&(&root / "embeddings"), config),
            layers: (0..config.num_hidden_layers).map(|i| Block::new(&(&layers / i), &block)).collect(),
            final_layer_norm: LayerNorm::new(&(&root / "final_layer_norm"), width, config.layer_norm_eps),
            text_projection: Linear::new(
                &(path / "text_projection"),
                Widths { input: width, output: config.projection_dim },
                false,
            ),
            config: config.clone(),
        }
    }

    /// Embeddings [B, P] of texts, not normalised: what stands at each text's end, which has seen all of it. No text is longer
    /// than the position table.
    ///
    /// # Panics
    /// When a text has no token, or more than there are positions.
    pub fn forward(&self, texts: &[&[u32]]) -> Tensor {
        let ends: Vec<usize> = texts.iter().map(|ids| self.config.end(ids)).collect();
        let length = 1 + ends.iter().max().expect("there is a text");
        // A token sees none after it: what is behind an end, or fills a row, changes nothing that is read.
        let padded = |(ids, end): (&&[u32], &usize)| {
            let own = ids[..=*end].iter().map(|id| i64::from(*id));
            own.chain(std::iter::repeat_n(0, length - 1 - end)).collect::<Vec<i64>>()
        };
        let ids: Vec<i64> = texts.iter().zip(&ends).flat_map(padded).collect();
        let device = self.embeddings.token_embedding.device();
        let ids_BL = numbers(&ids, device).view([texts.len() as i64, length as i64]);
        let mut x_BLD = self.embeddings.forward(&ids_BL);
        for layer in &self.layers {
            x_BLD = layer.forward(&x_BLD, length as i64);
        }
        let ends: Vec<i64> = ends.into_iter().map(|end| end as i64).collect();
        let rows_B = Tensor::arange(texts.len() as i64, (Kind::Int64, device)) * length as i64;
        let places_B = rows_B + numbers(&ends, device);
        let end_BD = x_BLD.flatten(0, 1).index_select(0, &places_B);
        self.text_projection.forward(&self.final_layer_norm.forward(&end_BD))
    }

    /// Floating-point operations of a forward pass over texts of these lengths.
    pub fn flops(&self, lengths: &[i64]) -> f64 {
        self.config.flops(lengths)
    }
}
