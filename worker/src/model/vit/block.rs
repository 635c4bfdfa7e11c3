//! The transformer block of both towers of OpenAI's CLIP, with Hugging Face's parameter names (`CLIPEncoderLayer`).
//!
//! Shapes: B batch, N tokens, Q of them queries, D width.

use super::Activation;
use crate::model::layers::{LayerNorm, Linear, Widths, merge_heads, split_heads};
use tch::{Tensor, nn};

// The constant of QuickGELU.
const QUICK: f64 = 1.702;

/// Sizes of a block.
#[derive(Debug, Clone, Copy)]
pub(in crate::model) struct BlockConfig {
    /// D.
    pub(in crate::model) width: i64,
    /// Width inside the MLP.
    pub(in crate::model) inner: i64,
    pub(in crate::model) heads: i64,
    pub(in crate::model) activation: Activation,
    /// Added to the variance in LayerNorm.
    pub(in crate::model) eps: f64,
    /// Whether a token sees those after it.
    pub(in crate::model) causal: bool,
}

#[derive(Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: i64,
    causal: bool,
}

impl Attention {
    fn new(path: &nn::Path, config: &BlockConfig) -> Self {
        let widths = Widths { input: config.width, output: config.width };
        let linear = |name: &str| Linear::new(&(path / name), widths, true);
        Self {
            q_proj: linear("q_proj"),
            k_proj: linear("k_proj"),
            v_proj: linear("v_proj"),
            out_proj: linear("out_proj"),
            heads: config.heads,
            causal: config.causal,
        }
    }

    /// What the queries [B, Q, D] gather from all tokens [B, N, D]; causal ones are all tokens, or the first of them.
    fn forward(&self, queries_BQD: &Tensor, x_BND: &Tensor) -> Tensor {
        let heads = |projection: &Linear, x: &Tensor| split_heads(&projection.forward(x), self.heads);
        let q = heads(&self.q_proj, queries_BQD);
        let (k, v) = (heads(&self.k_proj, x_BND), heads(&self.v_proj, x_BND));
        let x = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, self.causal, None, false);
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
    fn new(path: &nn::Path, config: &BlockConfig) -> Self {
        let (outer, inner) = (config.width, config.inner);
        Self {
            fc1: Linear::new(&(path / "fc1"), Widths { input: outer, output: inner }, true),
            fc2: Linear::new(&(path / "fc2"), Widths { input: inner, output: outer }, true),
            activation: config.activation,
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

/// One block.
#[derive(Debug)]
pub(in crate::model) struct Block {
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    pub(in crate::model) fn new(path: &nn::Path, config: &BlockConfig) -> Self {
        let norm = |name: &str| LayerNorm::new(&(path / name), config.width, config.eps);
        Self {
            layer_norm1: norm("layer_norm1"),
            self_attn: Attention::new(&(path / "self_attn"), config),
            layer_norm2: norm("layer_norm2"),
            mlp: Mlp::new(&(path / "mlp"), config),
        }
    }

    /// The first `tokens` of the block's output: [B, tokens, D]. What nobody reads is not computed.
    pub(in crate::model) fn forward(&self, x_BND: &Tensor, tokens: i64) -> Tensor {
        let normed_BND = self.layer_norm1.forward(x_BND);
        let attended = self.self_attn.forward(&normed_BND.narrow(1, 0, tokens), &normed_BND);
        let x_BQD = x_BND.narrow(1, 0, tokens) + attended;
        &x_BQD + self.mlp.forward(&self.layer_norm2.forward(&x_BQD))
    }

    /// Whether a forward pass draws random numbers.
    pub(in crate::model) fn draws(&self) -> bool {
        let Attention { q_proj, k_proj, v_proj, out_proj, .. } = &self.self_attn;
        [q_proj, k_proj, v_proj, out_proj, &self.mlp.fc1, &self.mlp.fc2].iter().any(|linear| linear.draws())
    }

    /// The linear layers and their paths below the block.
    pub(in crate::model) fn linears(&mut self) -> [(&'static str, &mut Linear); 6] {
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
