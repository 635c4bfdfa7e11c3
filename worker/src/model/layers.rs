//! The layers that the networks share: linear, LayerNorm, attention heads. Parameters are zero until `init` or
//! `weights` fills them.

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
        x.linear(&self.weight, self.bias.as_ref())
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
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true)
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
