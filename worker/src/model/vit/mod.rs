//! OpenAI's CLIP vision transformer (Radford et al. 2021) with the parameter names of Hugging Face's
//! `CLIPVisionModelWithProjection`.
//!
//! Shapes: B batch, C channels, H and W pixels, G patches a side, N = G² + 1 tokens, K patches kept, D width, P shared width.

mod block;
mod config;

pub(super) use block::{Block, BlockConfig};
pub use config::{Activation, ClipVisionConfig};

use super::{
    layers::{LayerNorm, Linear, Widths},
    lora::Adaptable,
    patches,
    vision::VisionTower,
};
use crate::torch::recompute::recompute;
use std::sync::Arc;
use tch::{Tensor, nn};

#[derive(Debug)]
struct Embeddings {
    class_embedding: Tensor,
    patch_embedding: Tensor,
    position_embedding: Tensor,
    patch: i64,
}

impl Embeddings {
    fn new(path: &nn::Path, config: &ClipVisionConfig) -> Self {
        let (width, patch, tokens) = (config.hidden_size, config.patch_size, config.grid().pow(2) + 1);
        let zero = nn::Init::Const(0.0);
        Self {
            class_embedding: path.var("class_embedding", &[width], zero),
            patch_embedding: (path / "patch_embedding").var("weight", &[width, patches::CHANNELS, patch, patch], zero),
            position_embedding: (path / "position_embedding").var("weight", &[tokens, width], zero),
            patch,
        }
    }

    fn forward(&self, pixels_BCHW: &Tensor, kept_BK: Option<&Tensor>) -> Tensor {
        let patches = patches::cut(pixels_BCHW, self.patch, kept_BK);
        let (batch, kind) = (patches.size()[0], patches.kind());
        let x_BND = patches.linear(&self.patch_embedding.flatten(1, -1).to_kind(kind), None::<&Tensor>);
        let class_B1D = self.class_embedding.to_kind(kind).expand([batch, 1, -1], true);
        // The class token has position 0.
        Tensor::cat(&[class_B1D, x_BND], 1) + patches::rows(&self.position_embedding.to_kind(kind), 1, kept_BK)
    }
}

/// The vision tower with its projection into the shared space.
#[derive(Debug)]
pub struct ClipVision {
    embeddings: Embeddings,
    pre_layrnorm: LayerNorm, // misspelt in every checkpoint
    layers: Vec<Arc<Block>>,
    post_layernorm: LayerNorm,
    visual_projection: Linear,
    config: ClipVisionConfig,
    recompute: bool,
}

impl ClipVision {
    /// Adds the tower's parameters below `path`; `init::random` or `weights::load` fills them.
    #[expect(
        clippy::arc_with_non_send_sync,
        reason = "libtorch's threads drop handles; nobody else uses the blocks then"
    )]
    pub fn new(path: &nn::Path, config: &ClipVisionConfig) -> Self {
        let root = path / "vision_model";
        let norm = |name: &str| LayerNorm::new(&(&root / name), config.hidden_size, config.layer_norm_eps);
        let (layers, block) = (&root / "encoder" / "layers", config.block());
        Self {
            embeddings: Embeddings::new(&(&root / "embeddings"), config),
            pre_layrnorm: norm("pre_layrnorm"),
            layers: (0..config.num_hidden_layers).map(|i| Arc::new(Block::new(&(&layers / i), &block))).collect(),
            post_layernorm: norm("post_layernorm"),
            visual_projection: Linear::new(
                &(path / "visual_projection"),
                Widths { input: config.hidden_size, output: config.projection_dim },
                false,
            ),
            config: config.clone(),
            recompute: false,
        }
    }
}

impl VisionTower for ClipVision {
    fn recompute_blocks(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    fn forward_kept(&self, pixels_BCHW: &Tensor, kept_BK: Option<&Tensor>) -> Tensor {
        let mut x_BND = self.pre_layrnorm.forward(&self.embeddings.forward(pixels_BCHW, kept_BK));
        let tokens = x_BND.size()[1];
        let last = self.layers.len().saturating_sub(1);
        for (i, layer) in self.layers.iter().enumerate() {
            // Only the class token is read after the last block.
            let tokens = if i == last { 1 } else { tokens };
            x_BND = if self.recompute && !layer.draws() {
                let layer = layer.clone();
                recompute(&x_BND, move |x_BND| layer.forward(x_BND, tokens))
            } else {
                layer.forward(&x_BND, tokens)
            };
        }
        let class_BD = x_BND.select(1, 0);
        self.visual_projection.forward(&self.post_layernorm.forward(&class_BD))
    }

    fn flops(&self, patches: i64) -> f64 {
        self.config.flops(patches)
    }

    fn patches(&self) -> i64 {
        self.embeddings.position_embedding.size()[0] - 1
    }

    fn layers(&self) -> i64 {
        self.layers.len() as i64
    }

    fn layer_id(&self, name: &str) -> i64 {
        let head = self.layers() + 1;
        let Some(inside) = name.strip_prefix("vision_model.") else { return head };
        if inside.starts_with("embeddings.") || inside.starts_with("pre_layrnorm.") {
            return 0;
        }
        let block = inside.strip_prefix("encoder.layers.").and_then(|rest| rest.split('.').next()?.parse::<i64>().ok());
        block.map_or(head, |block| block + 1)
    }

    fn final_norm(&self) -> &'static str {
        "vision_model.post_layernorm."
    }
}

impl Adaptable for ClipVision {
    fn linears(&mut self) -> Vec<(String, &mut Linear)> {
        let mut linears = Vec::new();
        for (i, block) in self.layers.iter_mut().enumerate() {
            let block = Arc::get_mut(block).expect("blocks are shared with backward passes only, and none is waiting");
            linears.extend(
                block.linears().map(|(name, linear)| (format!("vision_model.encoder.layers.{i}.{name}"), linear)),
            );
        }
        linears
    }
}
