//! Random weights: a function of (seed, name, shape) alone.
//!
//! Numbers come from BLAKE3's output stream keyed by seed and name, not from libtorch's generator: no order of creation,
//! device or version of libtorch changes them, and no generator's state is touched.

use super::adapter;
use std::collections::HashMap;
use tch::{Tensor, nn};

/// How a parameter is filled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fill {
    /// One value everywhere.
    Constant(f64),
    /// Normal with mean 0.
    Normal {
        /// The standard deviation.
        std: f64,
    },
    /// Uniform on [-bound, bound).
    Uniform {
        /// The largest magnitude.
        bound: f64,
    },
}

/// An architecture that knows how its parameters are drawn.
pub trait Initialise {
    /// How to fill the parameter `name`; `None` when it is not of this architecture.
    fn fill(&self, name: &str) -> Option<Fill>;
}

/// Fills the architecture's parameters; others in the store stay as they are.
pub fn random(store: &nn::VarStore, seed: u64, architecture: &impl Initialise) {
    for (name, mut tensor) in store.variables() {
        if let Some(fill) = architecture.fill(&name) {
            draw(&mut tensor, fill, seed, &name);
        }
    }
}

/// Fills the parameters below `adapter` as PyTorch fills linear layers (uniform, ±1/√inputs, biases too) and norms.
pub fn random_adapter(store: &nn::VarStore, seed: u64) {
    let variables = store.variables();
    for (name, tensor) in &variables {
        if name.split('.').next() == Some(adapter::PREFIX) {
            draw(&mut tensor.shallow_clone(), linear_fill(name, &variables), seed, name);
        }
    }
}

fn linear_fill(name: &str, variables: &HashMap<String, Tensor>) -> Fill {
    let (layer, kind) = name.rsplit_once('.').unwrap_or((name, ""));
    // A norm's weight is a vector, a linear layer's is [outputs, inputs].
    let inputs = variables.get(&format!("{layer}.weight")).and_then(|weight| weight.size().get(1).copied());
    match (inputs, kind) {
        (Some(inputs), _) => Fill::Uniform { bound: (inputs as f64).powf(-0.5) },
        (None, "weight") => Fill::Constant(1.0),
        (None, _) => Fill::Constant(0.0),
    }
}

/// Fills one parameter.
pub(super) fn draw(tensor: &mut Tensor, fill: Fill, seed: u64, name: &str) {
    let values = match fill {
        Fill::Constant(value) => {
            tch::no_grad(|| _ = tensor.fill_(value));
            return;
        }
        Fill::Normal { std } => normals(seed, name, tensor.numel(), std),
        Fill::Uniform { bound } => {
            uniforms(seed, name, tensor.numel()).map(|unit| ((unit * 2.0 - 1.0) * bound) as f32).collect()
        }
    };
    let values = Tensor::from_slice(&values).view(tensor.size().as_slice());
    tch::no_grad(|| tensor.copy_(&values));
}

/// `count` numbers on (0, 1).
fn uniforms(seed: u64, name: &str, count: usize) -> impl Iterator<Item = f64> {
    let mut hasher = blake3::Hasher::new_derive_key("llm2clip 2025 random weights");
    hasher.update(&seed.to_le_bytes());
    hasher.update(name.as_bytes());
    let mut stream = hasher.finalize_xof();
    let (mut block, mut at) = ([0u8; 4096], 4096);
    (0..count).map(move |_| {
        if at == block.len() {
            stream.fill(&mut block);
            at = 0;
        }
        let bits = u32::from_le_bytes(block[at..at + 4].try_into().expect("four bytes"));
        at += 4;
        // The middle of one of 2³² cells: neither 0, whose logarithm is infinite, nor 1.
        (f64::from(bits) + 0.5) / 4_294_967_296.0
    })
}

/// `count` normal numbers by Box and Muller's method.
fn normals(seed: u64, name: &str, count: usize, std: f64) -> Vec<f32> {
    let mut units = uniforms(seed, name, count.next_multiple_of(2));
    let mut values = Vec::with_capacity(count + 1);
    while let (Some(radius), Some(angle)) = (units.next(), units.next()) {
        let radius = (-2.0 * radius.ln()).sqrt() * std;
        let (sine, cosine) = (angle * std::f64::consts::TAU).sin_cos();
        values.extend([(radius * cosine) as f32, (radius * sine) as f32]);
    }
    values.truncate(count);
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        adapter::{Adapter, AdapterConfig},
        vit::{ClipVision, ClipVisionConfig},
    };
    use serde_json::json;
    use tch::{Device, Kind};

    fn vision() -> ClipVisionConfig {
        serde_json::from_value(json!({
            "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8, "hidden_act": "gelu", "projection_dim": 48,
        }))
        .unwrap()
    }

    const ADAPTER: AdapterConfig = AdapterConfig { input: 40, output: 48, blocks: 2, expansion: 2, l2_norm: true };

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    #[test]
    fn order_of_creation_and_other_parts_change_nothing() {
        let config = vision();
        let one = nn::VarStore::new(Device::Cpu);
        ClipVision::new(&one.root(), &config);
        random(&one, 7, &config);
        Adapter::new(&one.root(), &ADAPTER);
        random_adapter(&one, 7);

        let two = nn::VarStore::new(Device::Cpu);
        Adapter::new(&two.root(), &ADAPTER);
        random_adapter(&two, 7);
        let _ = two.root().var("logit_scale", &[], nn::Init::Const(2.5));
        ClipVision::new(&two.root(), &config);
        random(&two, 7, &config);
        random_adapter(&two, 7);

        let two = two.variables();
        for (name, tensor) in one.variables() {
            assert_eq!(values(&tensor), values(&two[&name]), "{name}");
        }
        assert_eq!(two["logit_scale"].double_value(&[]), 2.5);
    }

    #[test]
    fn seeds_and_names_draw_other_numbers() {
        let first = normals(0, "a", 5, 1.0);
        assert_eq!(first, normals(0, "a", 6, 1.0)[..5]);
        assert_ne!(first, normals(1, "a", 5, 1.0));
        assert_ne!(first, normals(0, "b", 5, 1.0));
    }

    #[test]
    fn standard_deviations_are_hugging_faces() {
        let config = vision();
        let store = nn::VarStore::new(Device::Cpu);
        ClipVision::new(&store.root(), &config);
        random(&store, 0, &config);
        let variables = store.variables();
        let check = |name: &str, expected: f64| {
            let std = variables[name].std(false).double_value(&[]);
            assert!((std / expected - 1.0).abs() < 0.05, "{name}: {std}, expected {expected}");
        };
        let block = "vision_model.encoder.layers.1";
        check("vision_model.embeddings.patch_embedding.weight", 0.02);
        check("visual_projection.weight", 0.125);
        check(&format!("{block}.self_attn.q_proj.weight"), 0.125 * 0.5);
        check(&format!("{block}.self_attn.out_proj.weight"), 0.125);
        check(&format!("{block}.mlp.fc1.weight"), 128f64.powf(-0.5));
        check(&format!("{block}.mlp.fc2.weight"), 0.125 * 0.5);
        for (name, tensor) in &variables {
            if name.contains("norm") || name.ends_with("bias") {
                let expected = if name.ends_with("weight") { 1.0 } else { 0.0 };
                let off = (tensor - expected).abs().max().double_value(&[]);
                assert_eq!(off, 0.0, "{name}");
            }
        }
    }

    #[test]
    fn an_adapter_is_drawn_as_pytorch_draws_linear_layers() {
        let store = nn::VarStore::new(Device::Cpu);
        Adapter::new(&store.root(), &ADAPTER);
        random_adapter(&store, 0);
        let variables = store.variables();
        let largest = |name: &str| variables[name].abs().max().double_value(&[]);
        let near = |value: f64, bound: f64| value <= bound && value > 0.95 * bound;
        assert!(near(largest("adapter.0.fn.0.weight"), 40f64.powf(-0.5)));
        assert!(near(largest("adapter.1.fn.3.bias"), 80f64.powf(-0.5)));
        assert_eq!(values(&variables["adapter.2.weight"]), values(&Tensor::ones([40], (Kind::Float, Device::Cpu))));
        assert_eq!(largest("adapter.0.ln.bias"), 0.0);
    }
}
