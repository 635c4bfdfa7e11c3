//! The layers that the networks share: linear, LayerNorm, attention heads. Parameters are zero until `init` or
//! `weights` fills them.
//!
//! A layer computes in the kind of its input: parameters are cast to it on the way, so that bf16 inputs mean bf16 compute
//! over fp32 master weights, with fp32 gradients.

use tch::{Tensor, nn};

/// x·Wᵀ + b.
#[derive(Debug)]
pub(super) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

/// Width of a linear layer's input and output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Widths {
    pub(super) input: i64,
    pub(super) output: i64,
}

impl Linear {
    pub(super) fn new(path: &nn::Path, widths: Widths, bias: bool) -> Self {
        let weight = path.var("weight", &[widths.output, widths.input], nn::Init::Const(0.0));
        let bias = bias.then(|| path.var("bias", &[widths.output], nn::Init::Const(0.0)));
        Self { weight, bias }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let bias = self.bias.as_ref().map(|bias| bias.to_kind(x.kind()));
        x.linear(&self.weight.to_kind(x.kind()), bias.as_ref())
    }

    /// The layer with W and b multiplied; gradients flow to the parameters.
    pub(super) fn scaled(&self, weight: f64, bias: f64) -> Self {
        Self { weight: &self.weight * weight, bias: self.bias.as_ref().map(|parameter| parameter * bias) }
    }
}

/// LayerNorm with scale and shift.
#[derive(Debug)]
pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub(super) fn new(path: &nn::Path, width: i64, eps: f64) -> Self {
        let weight = path.var("weight", &[width], nn::Init::Const(1.0));
        let bias = path.var("bias", &[width], nn::Init::Const(0.0));
        Self { weight, bias, eps }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        // The kernel's sums are fp32 whatever its input is.
        let (weight, bias) = (self.weight.to_kind(x.kind()), self.bias.to_kind(x.kind()));
        x.layer_norm(self.weight.size(), Some(weight), Some(bias), self.eps, true)
    }
}

/// Cuts the width into heads: [B, L, H·E] to [B, H, L, E].
pub(super) fn split_heads(x_BLD: &Tensor, heads: i64) -> Tensor {
    let (batch, length, width) = x_BLD.size3().expect("hidden states have three dimensions");
    x_BLD.view([batch, length, heads, width / heads]).transpose(1, 2)
}

/// The inverse of [`split_heads`].
pub(super) fn merge_heads(x_BHLE: &Tensor) -> Tensor {
    let (batch, heads, length, head) = x_BHLE.size4().expect("heads have four dimensions");
    x_BHLE.transpose(1, 2).reshape([batch, length, heads * head])
}
