//! The average of what is trained over the steps, in a flat buffer like the optimizer's moments: `ema` of a recipe.

use tch::Tensor;

/// ē ← d·ē + (1 − d)·p.
#[derive(Debug)]
pub(super) struct Ema {
    /// d.
    decay: f64,
    /// ē, in the kind of the parameters.
    pub(super) flat: Tensor,
}

impl Ema {
    /// Begins where the parameters are.
    pub(super) fn new(decay: f64, values: &Tensor) -> Self {
        Self { decay, flat: values.detach().copy() }
    }

    /// Takes the newest values of a stretch into the average. Nothing changes when `held`, a float scalar on the device, is 1.
    pub(super) fn update(&self, mut stretch: Tensor, values: &Tensor, held: Option<&Tensor>) {
        let weight = 1.0 - self.decay;
        tch::no_grad(|| {
            let _ = match held {
                None => stretch.lerp_(values, weight),
                Some(held) => {
                    // Not a product with what may be NaN: those values were held back as well.
                    let weight = (held.neg() + 1.0) * weight;
                    stretch.lerp_tensor_(values, &weight.to_kind(values.kind()))
                }
            };
        });
    }
}
