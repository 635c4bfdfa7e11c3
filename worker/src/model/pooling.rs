//! Token vectors to one vector a caption.

use tch::{Kind, Tensor};

/// The mean of the hidden states [B, L, D] over each row's span [B, L] bool, accumulated in fp32: [B, D] fp32. A row
/// without a span is zero.
pub fn mean(hidden_BLD: &Tensor, span_BL: &Tensor) -> Tensor {
    // Selected, not multiplied by 0 and 1: an infinite vector outside the span must not reach the mean.
    let inside = hidden_BLD.to_kind(Kind::Float).masked_fill(&span_BL.logical_not().unsqueeze(-1), 0.0);
    let count_B1 = span_BL.sum_dim_intlist([1i64].as_slice(), true, Kind::Float).clamp_min(1.0);
    inside.sum_dim_intlist([1i64].as_slice(), false, Kind::Float) / count_B1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_span_counts_and_an_empty_one_is_zero() {
        let hidden = Tensor::from_slice(&[1f32, 2.0, f32::INFINITY, 4.0, 3.0, 6.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        let span = Tensor::from_slice(&[true, false, true, false, false, false]).view([2, 3]);
        let pooled = mean(&hidden.view([2, 3, 2]), &span);
        assert_eq!(Vec::<f32>::try_from(pooled.flatten(0, -1)).unwrap(), [2.0, 4.0, 0.0, 0.0]);
    }

    #[test]
    fn sixteen_bit_vectors_are_summed_in_fp32() {
        // In bf16 the running sum of ones stops growing at 256.
        let hidden = Tensor::ones([1, 1024, 1], (Kind::BFloat16, tch::Device::Cpu));
        let pooled = mean(&hidden, &Tensor::ones([1, 1024], (Kind::Bool, tch::Device::Cpu)));
        assert_eq!((pooled.kind(), pooled.double_value(&[0, 0])), (Kind::Float, 1.0));
    }
}
