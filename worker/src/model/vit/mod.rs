//! OpenAI's CLIP vision transformer (Radford et al. 2021) with the parameter names of Hugging Face's
//! `CLIPVisionModelWithProjection`.
//!
//! Shapes: B batch, C channels, H and W pixels, G patches a side, N = G² + 1 tokens, Q of them queries, K patches kept, D width, P shared
//! width.

mod config;

pub use config::{Activation, ClipVisionConfig};

use super::{
    layers::{LayerNorm, Linear, Widths, merge_heads, split_heads},
    lora::Adaptable,
    patches,
    vision::VisionTower,
};
use crate::torch::recompute::recompute;
use std::sync::Arc;
use tch::{Tensor, nn};

// The constant of QuickGELU.
const QUICK: f64 = 1.702;

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

#[derive(Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: i64,
}

impl Attention {
    fn new(path: &nn::Path, config: &ClipVisionConfig) -> Self {
        let widths = Widths { input: config.hidden_size, output: config.hidden_size };
        let linear = |name: &str| Linear::new(&(path / name), widths, true);
        Self {
            q_proj: linear("q_proj"),
            k_proj: linear("k_proj"),
            v_proj: linear("v_proj"),
            out_proj: linear("out_proj"),
            heads: config.num_attention_heads,
        }
    }

    /// What the queries [B, Q, D] gather from all tokens [B, N, D].
    fn forward(&self, queries_BQD: &Tensor, x_BND: &Tensor) -> Tensor {
        let heads = |projection: &Linear, x: &Tensor| split_heads(&projection.forward(x), self.heads);
        let q = heads(&self.q_proj, queries_BQD);
        let (k, v) = (heads(&self.k_proj, x_BND), heads(&self.v_proj, x_BND));
        let x = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None, false);
        self.out_proj.forward(&merge_heads(&x))
    }
}

#[derive(Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Mlp {
    fn new(path: &nn::Path, config: &ClipVisionConfig) -> Self {
        let (outer, inner) = (config.hidden_size, config.intermediate_size);
        Self {
            fc1: Linear::new(&(path / "fc1"), Widths { input: outer, output: inner }, true),
            fc2: Linear::new(&(path / "fc2"), Widths { input: inner, output: outer }, true),
            activation: config.hidden_act,
        }
    }

    fn forward(&self, x_BND: &Tensor) -> Tensor {
        match self.activation {
            Activation::Gelu => self.fc2.forward(&self.fc1.forward(x_BND).gelu("none")),
            // x·σ(a·x) = silu(a·x) / a, with both factors in the weights: one pass over the activations, not three.
            Activation::QuickGelu => {
                let inside = self.fc1.scaled(QUICK, QUICK).forward(x_BND).silu();
                self.fc2.scaled(1.0 / QUICK, 1.0).forward(&inside)
            }
        }
    }
}

#[derive(Debug)]
struct Block {
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn new(path: &nn::Path, config: &ClipVisionConfig) -> Self {
        let norm = |name: &str| LayerNorm::new(&(path / name), config.hidden_size, config.layer_norm_eps);
        Self {
            layer_norm1: norm("layer_norm1"),
            self_attn: Attention::new(&(path / "self_attn"), config),
            layer_norm2: norm("layer_norm2"),
            mlp: Mlp::new(&(path / "mlp"), config),
        }
    }

    /// The first `tokens` of the block's output: [B, tokens, D]. What nobody reads is not computed.
    fn forward(&self, x_BND: &Tensor, tokens: i64) -> Tensor {
        let normed_BND = self.layer_norm1.forward(x_BND);
        let attended = self.self_attn.forward(&normed_BND.narrow(1, 0, tokens), &normed_BND);
        let x_BQD = x_BND.narrow(1, 0, tokens) + attended;
        &x_BQD + self.mlp.forward(&self.layer_norm2.forward(&x_BQD))
    }

    fn draws(&self) -> bool {
        let Attention { q_proj, k_proj, v_proj, out_proj, .. } = &self.self_attn;
        [q_proj, k_proj, v_proj, out_proj, &self.mlp.fc1, &self.mlp.fc2].iter().any(|linear| linear.draws())
    }

    /// The linear layers and their paths below the block.
    fn linears(&mut self) -> [(&'static str, &mut Linear); 6] {
        [
            ("self_attn.q_proj", &mut self.self_attn.q_proj),
            ("self_attn.k_proj", &mut self.self_attn.k_proj),
            ("self_attn.v_proj", &mut self.self_attn.v_proj),
            ("self_attn.out_proj", &mut self.self_attn.out_proj),
            ("mlp.fc1", &mut self.mlp.fc1),
            ("mlp.fc2", &mut self.mlp.fc2),
        ]
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
        let layers = &root / "encoder" / "layers";
        Self {
            embeddings: Embeddings::new(&(&root / "embeddings"), config),
            pre_layrnorm: norm("pre_layrnorm"),
            layers: (0..config.num_hidden_layers).map(|i| Arc::new(Block::new(&(&layers / i), config))).collect(),
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
