//! What a rank's device memory holds, item by item. Weights, gradients, moments and gathered rows are exact; what autograd
//! keeps is counted from the blocks' code (`model::size`), and kernels need a little more.

use super::stage::Item;
use crate::{model::size::Size, trainer::step::LossSettings};
use common::{ids::WorldSize, recipe::Training};

/// What passes are computed in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Passes {
    /// Bytes of a number.
    pub bytes: i64,
    /// Whether blocks run again in the backward pass.
    pub recompute: bool,
}

impl Passes {
    pub(super) fn of(training: &Training) -> Self {
        Self { bytes: bytes(training.precision), recompute: training.activation_checkpointing }
    }
}

/// Bytes of a number in this format.
pub(super) fn bytes(precision: common::recipe::Precision) -> i64 {
    crate::torch::kind(precision).elt_size_in_bytes() as i64
}

/// Parameters in training, in fp32: they, their gradients, and both moments, of which a sharded optimizer keeps a share.
pub(super) fn trained(parameters: i64, training: &Training, world: WorldSize) -> Vec<Item> {
    let share = if training.optimizer.sharded { i64::from(world.0) } else { 1 };
    vec![
        Item::new("trained weights", 4 * parameters),
        Item::new("gradients", 4 * parameters),
        Item::new("moments", 8 * ((parameters + share - 1) / share)),
    ]
}

/// What the backward pass of `tokens` tokens needs.
pub(super) fn activations(size: &Size, tokens: f64, passes: Passes) -> f64 {
    let block = (size.kept * passes.bytes + 4 * size.kept_wide) as f64;
    if passes.recompute {
        tokens * ((size.width * passes.bytes * size.blocks) as f64 + block)
    } else {
        tokens * block * size.blocks as f64
    }
}

/// Copies of fp32 weights in the passes' format, which live until the backward pass is through.
pub(super) fn casts(size: &Size, passes: Passes) -> i64 {
    match (passes.bytes, passes.recompute) {
        (4.., _) => 0,
        (bytes, false) => bytes * size.parameters,
        (bytes, true) => bytes * (size.parameters - (size.blocks - 1).max(0) * size.block_parameters),
    }
}

/// Rows of a contrastive loss.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    /// Of the global batch.
    pub global: i64,
    /// Of this rank.
    pub own: i64,
    /// Numbers of each.
    pub width: i64,
    /// Bytes of a number.
    pub bytes: i64,
    /// Own kinds of rows: image and text, or query, positive and negative.
    pub kinds: i64,
}

/// Own rows with their gradients, all ranks' rows of the kinds that are in memory together, and a tile of logits with what is
/// made of it.
pub(super) fn loss(rows: Rows) -> Vec<Item> {
    let settings = LossSettings::default();
    let gathered = rows.global * rows.width * rows.bytes;
    let together = if 2 * gathered <= settings.kept_bytes { 2 } else { 1 };
    let tile = rows.own.min(settings.tile) * rows.global.min(settings.tile) * 4;
    vec![
        Item::new("own rows", rows.kinds * rows.own * rows.width * (rows.bytes + 4)),
        Item::new("all ranks' rows", together * gathered),
        Item::new("a tile of logits", 3 * tile),
    ]
}
