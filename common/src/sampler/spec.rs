//! What an order depends on.

use super::Shuffle;
use crate::ids::Step;
use serde::{Deserialize, Serialize};

/// The version of the order: it changes whenever the same spec would give other samples.
pub const ORDER_VERSION: u32 = 2;

/// The version of what is drawn for a sample of an epoch: crop, caption, patches.
pub const AUGMENTATION_VERSION: u32 = 1;

/// All that the order of a stage's samples depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderSpec {
    /// The seed.
    pub seed: u64,
    /// Pairs per step.
    pub global_batch: u64,
    /// The data sets.
    pub sources: Vec<OrderSource>,
    /// How a global batch is composed.
    pub policy: Policy,
    /// What happens at the end of a data set.
    pub tail: Tail,
    /// The weights over time; the first segment begins at step 0.
    pub segments: Vec<Segment>,
}

impl OrderSpec {
    /// One data set a global batch, each sample once an epoch, the tail dropped, everything shuffled.
    pub fn plain(seed: u64, sources: &[(&str, u64)], global_batch: u64) -> Self {
        let source = |(name, samples): &(&str, u64)| OrderSource {
            name: (*name).to_owned(),
            samples: *samples,
            shuffle: Shuffle::Full,
        };
        Self {
            seed,
            global_batch,
            sources: sources.iter().map(source).collect(),
            policy: Policy::OneSource,
            tail: Tail::Drop,
            segments: vec![Segment::first(None)],
        }
    }
}

/// One data set of a mix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderSource {
    /// Its name in the recipe.
    pub name: String,
    /// How many samples its index has.
    pub samples: u64,
    /// How they are shuffled.
    pub shuffle: Shuffle,
}

/// How a global batch is composed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Of one data set, as the reference trains (research code, `MultiDataLoader`): weights count batches.
    #[default]
    OneSource,
    /// Of all data sets: weights count samples.
    Mixed,
}

/// What happens at the end of a data set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tail {
    /// What does not fill a batch any more is left out, other samples in every epoch.
    #[default]
    Drop,
    /// The batch is filled from the next epoch; it may hold a sample twice ([`super::Order::repeats`]).
    Carry,
}

/// A stretch of steps with the same weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Its first step.
    pub first: Step,
    /// One weight a data set; absent means in proportion to the sizes, so that each sample comes once an epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Vec<u32>>,
    /// Where each data set stands at its start: the epoch times the data set's samples, plus the place in the epoch.
    /// The first segment has none: it begins at the beginning.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub starts: Vec<u64>,
}

impl Segment {
    /// The segment that a stage begins with.
    pub fn first(weights: Option<Vec<u32>>) -> Self {
        Self { first: Step(0), weights, starts: Vec::new() }
    }
}

/// Why there is no order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// A batch would need a sample twice within an epoch.
    #[error(
        "a step takes {needed} samples of data set `{name}`, which has {samples}: \
         lower `global_batch`, add samples, or give it a lower weight (0 leaves it out)"
    )]
    TooFewSamples {
        /// The data set.
        name: String,
        /// How many it has.
        samples: u64,
        /// How many of it the largest share of a global batch has.
        needed: u64,
    },
    /// All of them together do not fill a global batch.
    #[error("a global batch of {global_batch} is more than all data sets have ({samples}): lower `global_batch`")]
    NoBatch {
        /// Pairs per step.
        global_batch: u64,
        /// Samples of all data sets.
        samples: u64,
    },
    /// No weight is above 0.
    #[error("no data set of the mix has a weight above 0")]
    NoWeight,
    /// A block or a window is empty.
    #[error("data set `{0}` is shuffled in blocks or windows of 0 samples")]
    EmptyWindow(String),
    /// The segments are not those of this mix.
    #[error("segment {number} of the order, from step {first}: {reason}")]
    Segment {
        /// Which, from 0.
        number: usize,
        /// Its first step.
        first: Step,
        /// What is wrong.
        reason: &'static str,
    },
}
