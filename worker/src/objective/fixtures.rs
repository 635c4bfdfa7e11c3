//! What the tests of losses share: rows, slices of ranks, reference tensors.

use proptest::prelude::*;
use std::{collections::HashMap, path::Path};
use tch::{Device, Kind, Tensor};

/// Whether a tensor is what it should be, within a share of its norm, or of 1 where the norm is smaller: what is 0 in theory
/// (the gradients of a pair alone) is the difference of logits of about 10, and so no nearer to 0 than their rounding.
pub fn close(found: &Tensor, expected: &Tensor, relative: f64) -> Result<(), TestCaseError> {
    let difference = (found - expected).norm().double_value(&[]);
    let size = expected.norm().double_value(&[]).max(1.0);
    prop_assert!(difference <= relative * size, "{difference} of {size}");
    Ok(())
}

/// [rows, width] in fp64, normalised, a leaf that wants its gradient.
pub fn normal_rows(rows: i64, width: i64) -> Tensor {
    let x = Tensor::randn([rows, width], (Kind::Double, Device::Cpu));
    let norm = x.norm_scalaropt_dim(2.0, [-1i64], true);
    (x / norm).set_requires_grad(true)
}

/// (first, rows) of every rank that has any.
pub fn slices(world: usize, pairs: i64) -> Vec<(i64, i64)> {
    let world = common::ids::WorldSize(world as u32);
    let slice = |rank| {
        let range = common::sampler::local_slots(rank, world, pairs as u64);
        (range.start as i64, (range.end - range.start) as i64)
    };
    world.ranks().map(slice).filter(|(_, rows)| *rows > 0).collect()
}

/// A case of `tests/golden/objective/make_golden.py`.
pub fn golden(name: &str) -> HashMap<String, Tensor> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/objective");
    Tensor::read_safetensors(folder.join(format!("{name}.safetensors"))).unwrap().into_iter().collect()
}
