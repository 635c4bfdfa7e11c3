//! The vision transformer of EVA02-CLIP (Fang et al. 2023; Sun et al. 2023) with the parameter names of eva_clip: learned
//! positions and rotations on two axes, LayerNorm inside attention and MLP, SwiGLU, keys without bias.
//!
//! Shapes: B batch, C channels, H and W pixels, G patches a side, N = G² + 1 tokens, Q of them queries, K patches kept, D width,
//! E head width, P shared width.

mod config;
mod rope;

pub use config::Eva02Config;

use super::{
    layers::{LayerNorm, Linear, Widths, merge_heads, split_heads},
    lora::Adaptable,
    patches,
    vision::VisionTower,
};
use crate::torch::recompute::recompute;
use rope::{Angles, Rotation};
use std::sync::Arc;
use tch::{Tensor, nn};

#[derive(Debug)]
struct Embeddings {
    cls_token: Tensor,
    pos_embed: Tensor,
    weight: Tensor,
    bias: Tensor,
    patch: i64,
}

impl Embeddings {
    fn new(path: &nn::Path, config: &Eva02Config) -> Self {
        let (width, patch, tokens) = (config.hidden_size, config.patch_size, config.grid().pow(2) + 1);
        let (zero, projection) = (nn::Init::Const(0.0), path / "patch_embed" / "proj");
        Self {
            cls_token: path.var("cls_token", &[1, 1, width], zero),
            pos_embed: path.var("pos_embed", &[1, tokens, width], zero),
            weight: projection.var("weight", &[width, patches::CHANNELS, patch, patch], zero),
            bias: projection.var("bias", &[width], zero),
            patch,
        }
    }

    fn forward(&self, pixels_BCHW: &Tensor, kept_BK: Option<&Tensor>) -> Tensor {
        let patches = patches::cut(pixels_BCHW, self.patch, kept_BK);
        let kind = patches.kind();
        let x_BKD = patches.linear(&self.weight.flatten(1, -1).to_kind(kind), Some(&self.bias.to_kind(kind)));
        let class_B1D = self.cls_token.to_kind(kind).expand([x_BKD.size()[0], 1, -1], true);
        Tensor::cat(&[class_B1D, x_BKD], 1) + patches::rows(&self.pos_embed.squeeze_dim(0).to_kind(kind), 1, kept_BK)
    }
}

#[derive(Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    inner_attn_ln: LayerNorm,
    proj: Linear,
    heads: i64,
}

impl Attention {
    fn new(path: &nn::Path, config: &Eva02Config) -> Self {
        let widths = Widths { input: config.hidden_size, output: config.hidden_size };
        let linear = |name: &str, bias| Linear::new(&(path / name), widths, bias);
        Self {
            q_proj: linear("q_proj", true),
            k_proj: linear("k_proj", false),
            v_proj: linear("v_proj", true),
            inner_attn_ln: LayerNorm::new(&(path / "inner_attn_ln"), config.hidden_size, config.layer_norm_eps),
            proj: linear("proj", true),
            heads: config.num_attention_heads,
        }
    }

    /// What the queries [B, Q, D], the first of the tokens, gather from all tokens [B, N, D].
    fn forward(&self, queries_BQD: &Tensor, x_BND: &Tensor, rotation: &Rotation) -> Tensor {
        let heads = |projection: &Linear, x: &Tensor| split_heads(&projection.forward(x), self.heads);
        let q = rotation.turn(&heads(&self.q_proj, queries_BQD));
        let k = rotation.turn(&heads(&self.k_proj, x_BND));
        let v = heads(&self.v_proj, x_BND);
        let x = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None, false);
        self.proj.forward(&self.inner_attn_ln.forward(&merge_heads(&x)))
    }
}

/// SwiGLU with a norm inside: w3(LN(silu(w1 x) ⊙ w2 x)).
#[derive(Debug)]
struct Mlp {
    w1: Linear,
    w2: Linear,
    ffn_ln: LayerNorm,
    w3: Linear,
}

impl Mlp {
    fn new(path: &nn::Path, config: &Eva02Config) -> Self {
        let (outer, inner) = (config.hidden_size, config.intermediate_size);
        let linear = |name: &str, input, output| Linear::new(&(path / name), Widths { input, output }, true);
        Self {
            w1: linear("w1", outer, inner),
            w2: linear("w2", outer, inner),
            ffn_ln: LayerNorm::new(&(path / "ffn_ln"), inner, config.layer_norm_eps),
            w3: linear("w3", inner, outer),
        }
    }

    fn forward(&self, x_BND: &Tensor) -> Tensor {
        self.w3.forward(&self.ffn_ln.forward(&(self.w1.forward(x_BND).silu() * self.w2.forward(x_BND))))
    }
}

#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn new(path: &nn::Path, config: &Eva02Config) -> Self {
        let norm = |name: &str| LayerNorm::new(&(path / name), config.hidden_size, config.layer_norm_eps);
        Self {
            norm1: norm("norm1"),
            attn: Attention::new(&(path / "attn"), config),
            norm2: norm("norm2"),
            mlp: Mlp::new(&(path / "mlp"), config),
        }
    }

    /// The first `tokens` of the block's output: [B, tokens, D]. What nobody reads is not computed.
    fn forward(&self, x_BND: &Tensor, tokens: i64, rotation: &Rotation) -> Tensor {
        let normed_BND = self.norm1.forward(x_BND);
        let attended = self.attn.forward(&normed_BND.narrow(1, 0, tokens), &normed_BND, rotation);
        let x_BQD = x_BND.narrow(1, 0, tokens) + attended;
        &x_BQD + self.mlp.forward(&self.norm2.forward(&x_BQD))
    }
}

impl Block {
    fn draws(&self) -> bool {
        let (Attention { q_proj, k_proj, v_proj, proj, .. }, Mlp { w1, w2, w3, .. }) = (&self.attn, &self.mlp);
        [q_proj, k_proj, v_proj, proj, w1, w2, w3].iter().any(|linear| linear.draws())
    }

    /// The linear layers and their paths below the block.
    fn linears(&mut self) -> [(&'static str, &mut Linear); 7] {
        [
            ("attn.q_proj", &mut self.attn.q_proj),
            ("attn.k_proj", &mut self.attn.k_proj),
            ("attn.v_proj", &mut self.attn.v_proj),
            ("attn.proj", &mut self.attn.proj),
            ("mlp.w1", &mut self.mlp.w1),
            ("mlp.w2", &mut self.mlp.w2),
            ("mlp.w3", &mut self.mlp.w3),
        ]
    }
}

/// The vision tower with its head into the shared space.
#[derive(Debug)]
pub struct Eva02 {
    embeddings: Embeddings,
    angles: Angles,
    blocks: Vec<Arc<Block>>,
    norm: LayerNorm,
    head: Linear,
    config: Eva02Config,
    recompute: bool,
}

impl Eva02 {
    /// Adds the tower's parameters below `path`; `init::random` or `weights::load` fills them.
    #[expect(
        clippy::arc_with_non_send_sync,
        reason = "libtorch's threads drop handles; nobody else uses the blocks then"
    )]
    pub fn new(path: &nn::Path, config: &Eva02Config) -> Self {
        let root = path / "visual";
        let blocks = &root / "blocks";
        Self {
            embeddings: Embeddings::new(&root, config),
            // No parameter: checkpoints may hold the tables, but they follow from the sizes.
            angles: Angles::new(config.grid(), config.rope_reference_grid, config.head_dim(), path.device()),
            blocks: (0..config.num_hidden_layers).map(|i| Arc::new(Block::new(&(&blocks / i), config))).collect(),
            norm: LayerNorm::new(&(&root / "norm"), config.hidden_size, config.layer_norm_eps),
            head: Linear::new(
                &(&root / "head"),
                Widths { input: config.hidden_size, output: config.projection_dim },
                true,
            ),
            config: config.clone(),
            recompute: false,
        }
    }
}

impl VisionTower for Eva02 {
    fn forward_kept(&self, pixels_BCHW: &Tensor, kept_BK: Option<&Tensor>) -> Tensor {
        let mut x_BND = self.embeddings.forward(pixels_BCHW, kept_BK);
        let (tokens, rotation) = (x_BND.size()[1], self.angles.of(kept_BK, x_BND.kind()));
        let last = self.blocks.len().saturating_sub(1);
        for (i, block) in self.blocks.iter().enumerate() {
            // Only the class token is read after the last block.
            let tokens = if i == last { 1 } else { tokens };
            x_BND = if self.recompute && !block.draws() {
                let (block, rotation) = (block.clone(), rotation.share());
                recompute(&x_BND, move |x_BND| block.forward(x_BND, tokens, &rotation))
            } else {
                block.forward(&x_BND, tokens, &rotation)
            };
        }
        self.head.forward(&self.norm.forward(&x_BND.select(1, 0)))
    }

    fn recompute_blocks(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    fn flops(&self, patches: i64) -> f64 {
        self.config.flops(patches)
    }

    fn patches(&self) -> i64 {
        self.config.grid().pow(2)
    }

    fn layers(&self) -> i64 {
        self.blocks.len() as i64
    }

    fn layer_id(&self, name: &str) -> i64 {
        let head = self.layers() + 1;
        let Some(inside) = name.strip_prefix("visual.") else { return head };
        if ["cls_token", "pos_embed", "patch_embed."].iter().any(|begin| inside.starts_with(begin)) {
            return 0;
        }
        let block = inside.strip_prefix("blocks.").and_then(|rest| rest.split('.').next()?.parse::<i64>().ok());
        block.map_or(head, |block| block + 1)
    }

    fn final_norm(&self) -> &'static str {
        "visual.norm."
    }
}

impl Adaptable for Eva02 {
    fn linears(&mut self) -> Vec<(String, &mut Linear)> {
        let mut linears = Vec::new();
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let block = Arc::get_mut(block).expect("blocks are shared with backward passes only, and none is waiting");
            linears.extend(block.linears().map(|(name, linear)| (format!("visual.blocks.{i}.{name}"), linear)));
        }
        linears
    }
}
