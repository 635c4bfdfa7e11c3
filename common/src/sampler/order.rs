//! Which sample each slot of each step has.
//!
//! Every global batch comes from one data set, as the reference trains (research code, `MultiDataLoader`). An epoch has
//! ⌊N/B⌋ batches of each data set, in a shuffled order; which samples are left over differs from epoch to epoch.

use super::{Permutation, Purpose};
use crate::ids::{Epoch, SampleIndex, Step};

/// One data set of a mix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceSize {
    /// Its name in the recipe.
    pub name: String,
    /// How many samples its index has.
    pub samples: u64,
}

/// Why there is no order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// No data set fills a global batch.
    #[error(
        "a global batch of {global_batch} is more than any data set has ({sizes}): lower `global_batch` or add samples"
    )]
    TooFewSamples {
        /// Pairs per step.
        global_batch: u64,
        /// Names and sizes.
        sizes: String,
    },
}

/// The place of one sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// Which data set of the mix, from 0.
    pub source: usize,
    /// Which of its samples.
    pub index: SampleIndex,
    /// How often the mix was gone through before.
    pub epoch: Epoch,
}

/// The order of a stage.
#[derive(Debug, Clone)]
pub struct Order {
    seed: u64,
    global_batch: u64,
    sources: Vec<SourceSize>,
    /// How many batches of an epoch come from this data set or one before it.
    batches_up_to: Vec<u64>,
}

impl Order {
    /// The order of a mix.
    ///
    /// # Errors
    /// When no data set fills a global batch.
    ///
    /// # Panics
    /// When `global_batch` is 0.
    pub fn new(seed: u64, sources: &[SourceSize], global_batch: u64) -> Result<Self, OrderError> {
        assert!(global_batch > 0, "a global batch has at least one pair");
        let mut batches = 0;
        let count = |source: &SourceSize| {
            batches += source.samples / global_batch;
            batches
        };
        let batches_up_to: Vec<u64> = sources.iter().map(count).collect();
        if batches == 0 {
            let sizes: Vec<String> = sources.iter().map(|s| format!("{}: {}", s.name, s.samples)).collect();
            return Err(OrderError::TooFewSamples { global_batch, sizes: sizes.join(", ") });
        }
        Ok(Self { seed, global_batch, sources: sources.to_vec(), batches_up_to })
    }

    /// Steps of one epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.batches_up_to.last().copied().unwrap_or(0)
    }

    /// The sample of a slot of a step.
    ///
    /// # Panics
    /// When `slot` is not below the global batch.
    pub fn draw(&self, step: Step, slot: u64) -> Draw {
        assert!(slot < self.global_batch, "slot {slot} of a global batch of {}", self.global_batch);
        let per_epoch = self.steps_per_epoch();
        let epoch = Epoch(step.0 / per_epoch);
        let batch = Permutation::new(self.seed, Purpose::Mix, 0, epoch, per_epoch).at(step.0 % per_epoch);
        let source = self.batches_up_to.partition_point(|up_to| *up_to <= batch);
        let before = if source == 0 { 0 } else { self.batches_up_to[source - 1] };
        let number = u32::try_from(source).expect("a mix has fewer than 2^32 data sets");
        let samples = Permutation::new(self.seed, Purpose::Order, number, epoch, self.sources[source].samples);
        Draw { source, index: SampleIndex(samples.at((batch - before) * self.global_batch + slot)), epoch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn order(sizes: &[u64], global_batch: u64) -> Order {
        let sources: Vec<SourceSize> =
            sizes.iter().enumerate().map(|(i, n)| SourceSize { name: format!("s{i}"), samples: *n }).collect();
        Order::new(17, &sources, global_batch).unwrap()
    }

    #[test]
    fn an_epoch_has_each_sample_at_most_once_and_a_batch_has_one_source() {
        let order = order(&[100, 37, 9], 10);
        assert_eq!(order.steps_per_epoch(), 13);
        for epoch in 0..3 {
            let mut seen = BTreeSet::new();
            for step in epoch * 13..(epoch + 1) * 13 {
                let draws: Vec<Draw> = (0..10).map(|slot| order.draw(Step(step), slot)).collect();
                assert!(draws.iter().all(|draw| draw.source == draws[0].source && draw.epoch == Epoch(epoch)));
                assert!(draws.iter().all(|draw| seen.insert((draw.source, draw.index))));
            }
            assert_eq!(seen.len(), 130);
        }
    }

    #[test]
    fn the_order_is_that_of_the_golden_file() {
        // Made by tests/golden/sampler/make_golden.py, which shares no code with this.
        let golden = include_str!("../../../tests/golden/sampler/order.json");
        let golden: Vec<(u64, u64, usize, u64, u64)> = serde_json::from_str(golden).unwrap();
        let order = order(&[1000, 333], 64);
        for (step, slot, source, index, epoch) in golden {
            let expected = Draw { source, index: SampleIndex(index), epoch: Epoch(epoch) };
            assert_eq!(order.draw(Step(step), slot), expected, "step {step}, slot {slot}");
        }
    }

    #[test]
    fn a_batch_that_no_source_fills_is_refused_with_the_sizes() {
        let sources = [SourceSize { name: "val".into(), samples: 9 }];
        let error = Order::new(0, &sources, 10).unwrap_err().to_string();
        assert!(error.contains("global batch of 10") && error.contains("val: 9"), "{error}");
    }
}
