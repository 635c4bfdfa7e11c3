//! Rotary position embedding of patches on two axes, whose positions are scaled to a reference grid (Fang et al. 2023, "EVA-02").
//!
//! Shapes: G patches a side, N = G² + 1 tokens, Q and T tokens, K patches kept, B batch, H heads, E head width.

use crate::model::patches;
use std::f64::consts::LN_10;
use tch::{Device, Kind, Tensor};

// The base of the frequencies, 10000, as a power of ten.
const BASE: f64 = 4.0;

/// Cosines and signed sines of every token: each [N, E] fp32. The class token's angle is 0.
#[derive(Debug)]
pub(super) struct Angles {
    cos_NE: Tensor,
    sin_NE: Tensor,
}

/// The angles of the tokens of a batch: each [B or 1, 1, T, E].
#[derive(Debug)]
pub(super) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Angles {
    /// Of a square grid: the first half of a head turns by the row, the second by the column, adjacent components in pairs.
    /// The position of row g is g/G · `reference`.
    pub(super) fn new(grid: i64, reference: i64, head_dim: i64, device: Device) -> Self {
        let (bands, options) = (head_dim / 4, (Kind::Double, Device::Cpu));
        let frequencies = (Tensor::arange(bands, options) * (-BASE * LN_10 / bands as f64)).exp();
        let positions = Tensor::arange(grid, options) * (reference as f64 / grid as f64);
        let axis_GE = positions.outer(&frequencies).repeat_interleave_self_int(2, 1, None);
        let shape = [grid, grid, head_dim / 2];
        let of_row = axis_GE.unsqueeze(1).expand(shape, false);
        let of_column = axis_GE.unsqueeze(0).expand(shape, false);
        let of_patches = Tensor::cat(&[of_row, of_column], 2).flatten(0, 1);
        let angles_NE = Tensor::cat(&[Tensor::zeros([1, head_dim], options), of_patches], 0);
        // (a, b) turns to (a·cos − b·sin, b·cos + a·sin): the swapped pair meets sines of alternating sign.
        let sign = Tensor::from_slice(&[-1.0, 1.0]).repeat([head_dim / 2]);
        let place = |table: Tensor| table.to_kind(Kind::Float).to_device(device);
        Self { cos_NE: place(angles_NE.cos()), sin_NE: place(angles_NE.sin() * sign) }
    }

    /// Of the class token and all patches, or the patches `kept_BK`, in a kind.
    pub(super) fn of(&self, kept_BK: Option<&Tensor>, kind: Kind) -> Rotation {
        let of_tokens = |table_NE: &Tensor| patches::rows(&table_NE.to_kind(kind), 1, kept_BK).unsqueeze(1);
        Rotation { cos: of_tokens(&self.cos_NE), sin: of_tokens(&self.sin_NE) }
    }
}

impl Rotation {
    /// Another handle to the same tensors.
    pub(super) fn share(&self) -> Self {
        Self { cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }

    /// Turns the heads [B, H, Q, E] of the first Q tokens.
    pub(super) fn turn(&self, x_BHQE: &Tensor) -> Tensor {
        let tokens = x_BHQE.size()[2];
        let swapped = x_BHQE.unflatten(-1, [-1, 2]).flip([-1]).flatten(-2, -1);
        x_BHQE * self.cos.narrow(2, 0, tokens) + swapped * self.sin.narrow(2, 0, tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finer_grid_has_nearer_positions_and_the_class_token_none() {
        // Two bands an axis; at band 0 the angle is the position itself.
        let [coarse, fine] = [16, 32].map(|grid| Angles::new(grid, 16, 8, Device::Cpu));
        let cos = |angles: &Angles, token: i64, at: i64| angles.cos_NE.double_value(&[token, at]);
        assert!((0..8).all(|at| cos(&coarse, 0, at) == 1.0 && coarse.sin_NE.double_value(&[0, at]) == 0.0));
        let (row_2_column_3, row_4_column_6) = (1 + 2 * 16 + 3, 1 + 4 * 32 + 6);
        for at in 0..8 {
            let expected = [2.0f64, 2.0, 0.02, 0.02, 3.0, 3.0, 0.03, 0.03][at as usize].cos();
            assert!((cos(&coarse, row_2_column_3, at) - expected).abs() < 1e-6);
            assert!((cos(&fine, row_4_column_6, at) - expected).abs() < 1e-6);
        }
    }
}
