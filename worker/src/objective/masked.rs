//! The loss of masked next-token prediction: the cross-entropy of tokens that were masked, predicted by the position before
//! them (BehnamGhader et al. 2024, section 2.1).

use tch::{Kind, Reduction, Tensor};

/// Σ −log softmax(logits)[target] over M masked tokens: a scalar, in fp32 at least. `logits_MV` are of the positions before
/// them, `targets_M` the tokens that were there, int64. No token gives 0.
pub fn cross_entropy_sum(logits_MV: &Tensor, targets_M: &Tensor) -> Tensor {
    let kind = super::rows::wide(logits_MV.kind());
    logits_MV.log_softmax(-1, kind).g_nll_loss(targets_M, None::<&Tensor>, Reduction::Sum, -100)
}

/// How many of M predictions are the token that was there: a scalar.
pub fn hits(logits_MV: &Tensor, targets_M: &Tensor) -> Tensor {
    logits_MV.argmax(-1, false).eq_tensor(targets_M).sum(Kind::Int64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn it_is_the_sum_over_tokens_and_nothing_of_nothing() {
        let logits = Tensor::from_slice(&[0.0f64, 0.0, 3f64.ln(), 0.0]).view([2, 2]);
        let loss = cross_entropy_sum(&logits, &Tensor::from_slice(&[0i64, 1]));
        assert!((loss.double_value(&[]) - (2f64.ln() + 4f64.ln())).abs() < 1e-12);
        assert_eq!(hits(&logits, &Tensor::from_slice(&[0i64, 0])).int64_value(&[]), 2);
        let none = cross_entropy_sum(&logits.narrow(0, 0, 0), &Tensor::zeros([0], (Kind::Int64, Device::Cpu)));
        assert_eq!(none.double_value(&[]), 0.0);
    }
}
