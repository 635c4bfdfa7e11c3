//! The average of what is trained over the steps, in a flat buffer like the optimizer's moments: `ema` of a recipe.

use tch::Tensor;

/// ē ← d·ē + (1 − d)·p.
#[derive(Debug)]
pub(super) struct Ema {
    /// d.
    decay: f64,
    /// Whether every rank keeps all of it, whatever it keeps of the moments: somebody computes with it.
    pub(super) whole: bool,
    /// ē, in the kind of the parameters.
    pub(super) flat: Tensor,
}

impl Ema {
    /// Begins where the parameters are.
    pub(super) fn new(decay: f64, whole: bool, values: &Tensor) -> Self {
        Self { decay, whole, flat: values.detach().copy() }
    }

    /// Takes the newest values of a stretch into the average. Nothing changes when `held`, a float scalar on the device, is 1.
    pub(super) fn update(&self, mut stretch: Tensor, values: &Tensor, held: Option<&Tensor>) {
        let weight = 1.0 - self.decay;
        tch::no_grad(|| {
            let _ = match held {
                None => stretch.lerp_(values, weight),
                Some(held) => {
                    let weight = (held.to_kind(values.kind()).neg() + 1.0) * weight;
                    stretch.lerp_tensor_(values, &weight)
                }
            };
        });
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        collective::Solo,
        torch::shim::AdamW,
        trainer::{error::TrainerError, layout::clip_groups, parameters::FlatParameters},
    };
    use std::collections::HashMap;
    use tch::{Device, Tensor, nn};

    type Case = HashMap<String, Tensor>;

    fn case() -> Case {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/objective/ema.safetensors");
        Tensor::read_safetensors(path).unwrap().into_iter().collect()
    }

    /// Parameters of the case, in its kind, and their store.
    fn averaged(case: &Case) -> (nn::VarStore, FlatParameters) {
        let mut store = nn::VarStore::new(Device::Cpu);
        for (name, shape) in [("w", [3, 5].as_slice()), ("b", &[5])] {
            let _ = store.root().var(name, shape, nn::Init::Const(0.0));
        }
        store.double();
        for (name, mut variable) in store.variables() {
            tch::no_grad(|| variable.copy_(&case[&format!("start.{name}")]));
        }
        let variables = store.variables().into_iter().collect();
        let mut flat = FlatParameters::new(variables, clip_groups(0.1, 1.0, 0, |_| 1), Device::Cpu).unwrap();
        flat.average(0.9, false);
        (store, flat)
    }

    /// A step with the case's gradients.
    fn step(flat: &mut FlatParameters, case: &Case, step: i64) {
        for name in ["w", "b"] {
            flat.gradient(name).unwrap().copy_(&case[&format!("gradients.{name}")].get(step));
        }
        let constants =
            AdamW { step: step as u64 + 1, learning_rate: 0.05, betas: (0.9, 0.98), weight_decay: 0.0, eps: 1e-6 };
        flat.update(&Solo, None, &constants).unwrap();
        flat.update_average(None);
    }

    fn named(flat: &FlatParameters) -> Case {
        flat.named(&Solo).unwrap().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect()
    }

    #[test]
    fn the_average_is_that_of_torch_and_timm_and_comes_back_in_every_bit() {
        let case = case();
        let (store, mut flat) = averaged(&case);
        (0..5).for_each(|i| step(&mut flat, &case, i));
        let saved = named(&flat);
        let (_other_store, mut other) = averaged(&case);
        other.load(|name| Ok::<_, TrainerError>(saved[name].shallow_clone())).unwrap();
        (5..10).for_each(|i| step(&mut flat, &case, i));
        (5..10).for_each(|i| step(&mut other, &case, i));
        let (found, resumed) = (named(&flat), named(&other));
        assert!(found.iter().all(|(name, tensor)| tensor.equal(&resumed[name])), "a resumed average is another");
        for theirs in ["torch", "timm"] {
            for name in ["w", "b"] {
                let expected = &case[&format!("{theirs}.{name}")];
                let off = ((&found[&format!("ema.{name}")] - expected).norm() / expected.norm()).double_value(&[]);
                println!("{theirs}, {name}: off by {off:.1e}");
                assert!(off < 1e-12, "{theirs}, {name}: off by {off}");
            }
        }
        // A step that is held back leaves it.
        let before = named(&flat);
        let _ = tch::no_grad(|| store.variables()["w"].shallow_clone().fill_(7.0));
        flat.update_average(Some(&Tensor::from(1.0f32)));
        assert!(named(&flat)["ema.w"].equal(&before["ema.w"]));
        flat.update_average(Some(&Tensor::from(0.0f32)));
        assert!(!named(&flat)["ema.w"].equal(&before["ema.w"]));
    }
}
