//! The numbers behind a crop: a function of (seed, data set, sample, epoch) alone.

use common::{
    ids::{Epoch, SampleIndex},
    sampler::{CounterRng, Purpose},
};

/// What `RandomResizedCrop` draws, in its own order.
pub trait Draws {
    /// Evenly from [low, high).
    fn uniform(&mut self, low: f64, high: f64) -> f64;
    /// Evenly from 0 to `bound` - 1.
    fn below(&mut self, bound: u32) -> u32;
}

/// The draws of one sample in one epoch.
#[derive(Debug, Clone)]
pub struct SampleDraws(CounterRng);

impl SampleDraws {
    /// Begins at the first number.
    pub fn new(seed: u64, source: u32, index: SampleIndex, epoch: Epoch) -> Self {
        Self(CounterRng::new(seed, Purpose::Crop, source, index, epoch))
    }
}

impl Draws for SampleDraws {
    fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + self.0.uniform() * (high - low)
    }

    fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(self.0.below(u64::from(bound))).expect("the number is below a u32")
    }
}
