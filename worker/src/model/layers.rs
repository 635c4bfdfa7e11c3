//! The layers that the networks share: linear, LayerNorm, attention heads. Parameters are zero until `init` or
//! `weights` fills them.
//!
//! A layer computes in the kind of its input: parameters are cast to it on the way, so that bf16 inputs mean bf16 compute
//! over fp32 master weights, with fp32 gradients.

use super::lora::Dropping;
use std::sync::Arc;
use tch::{Device, Kind, Tensor, nn};

/// x·Wᵀ + b, and what low-rank updates add to it.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    updates: Vec<LowRank>,
}

/// An update s·B·A beside a frozen weight; `lora` computes with it.
#[derive(Debug)]
pub(super) struct LowRank {
    /// [r, inputs].
    pub(super) a: Tensor,
    /// [outputs, r].
    pub(super) b: Tensor,
    pub(super) scale: f64,
    /// Of the inputs, while it is on.
    pub(super) dropout: f64,
    pub(super) dropping: Arc<Dropping>,
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
        Self { weight, bias, updates: Vec::new() }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let bias = self.bias.as_ref().map(|bias| bias.to_kind(x.kind()));
        let base = x.linear(&self.weight.to_kind(x.kind()), bias.as_ref());
        self.updates.iter().fold(base, |y, update| y + update.forward(x))
    }

    /// The layer with W and b multiplied; gradients flow to the parameters.
    pub(super) fn scaled(&self, weight: f64, bias: f64) -> Self {
        let update = |update: &LowRank| LowRank {
            a: update.a.shallow_clone(),
            b: update.b.shallow_clone(),
            scale: update.scale * weight,
            dropout: update.dropout,
            dropping: update.dropping.clone(),
        };
        Self {
            weight: &self.weight * weight,
            bias: self.bias.as_ref().map(|parameter| parameter * bias),
            updates: self.updates.iter().map(update).collect(),
        }
    }

    pub(super) fn widths(&self) -> Widths {
        let size = self.weight.size();
        Widths { input: size[1], output: size[0] }
    }

    pub(super) fn device(&self) -> Device {
        self.weight.device()
    }

    /// Whether a forward pass draws random numbers, so that a second one is another.
    pub(super) fn draws(&self) -> bool {
        self.updates.iter().any(LowRank::draws)
    }

    pub(super) fn add(&mut self, update: LowRank) {
        self.updates.push(update);
    }

    pub(super) fn remove_last(&mut self) {
        self.updates.pop();
    }

    /// W ← W + Σ s·B·A, without updates from then on.
    pub(super) fn merge(&mut self) {
        for update in self.updates.drain(..) {
            tch::no_grad(|| {
                let sum = self.weight.to_kind(Kind::Float) + update.matrix();
                self.weight.copy_(&sum);
            });
        }
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
