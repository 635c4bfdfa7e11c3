//! Token vectors to one vector a caption.

use crate::torch::transfer::numbers;
use std::ops::Range;
use tch::{Kind, Tensor};

/// The mean of the hidden states of each span of tokens, accumulated in fp32: [N, D] fp32. `hidden_TD` holds the tokens of
/// N texts one after the other; a span is of places among them. A text without a span is zero.
pub fn mean(hidden_TD: &Tensor, spans: &[Range<i64>]) -> Tensor {
    let device = hidden_TD.device();
    let tokens: Vec<i64> = spans.iter().flat_map(Clone::clone).collect();
    let counts: Vec<i64> = spans.iter().map(|span| (span.end - span.start).max(0)).collect();
    let counts_N = numbers(&counts, device);
    // Selected, not multiplied by 0 and 1: an infinite vector outside of the spans must not reach a mean.
    let inside = hidden_TD.index_select(0, &numbers(&tokens, device)).to_kind(Kind::Float);
    let sums_ND = Tensor::segment_reduce(&inside, "sum", Some(&counts_N), None, None, 0, false, 0.0);
    sums_ND / counts_N.clamp_min(1).unsqueeze(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_span_counts_and_an_empty_one_is_zero() {
        let hidden = Tensor::from_slice(&[1f32, 2.0, 3.0, 6.0, f32::INFINITY, 4.0, 1.0, 1.0]).view([4, 2]);
        let pooled = mean(&hidden, &[0..2, 2..2, 3..4]);
        assert_eq!(Vec::<f32>::try_from(pooled.flatten(0, -1)).unwrap(), [2.0, 4.0, 0.0, 0.0, 1.0, 1.0]);
    }

    #[test]
    fn gradients_are_shared_out_evenly() {
        let hidden = Tensor::ones([3, 1], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
        mean(&hidden, &[0..2, 2..3]).sum(Kind::Float).backward();
        assert_eq!(Vec::<f32>::try_from(hidden.grad().view([-1])).unwrap(), [0.5, 0.5, 1.0]);
    }

    #[test]
    fn sixteen_bit_vectors_are_summed_in_fp32() {
        // In bf16 the running sum of ones stops growing at 256.
        let hidden = Tensor::ones([1024, 1], (Kind::BFloat16, tch::Device::Cpu));
        let pooled = mean(&hidden, std::slice::from_ref(&(0..1024)));
        assert_eq!((pooled.kind(), pooled.double_value(&[0, 0])), (Kind::Float, 1.0));
    }
}
