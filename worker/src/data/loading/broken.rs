//! What becomes of samples whose images cannot be decoded.

use super::SampleRequest;
use crate::data::{DataError, SkipReason};
use common::{ids::SampleIndex, sampler::Order};
use std::{fmt::Debug, sync::Arc};

/// How many samples of a data set are asked for before the share of broken ones is believed.
const JUDGED_FROM: u64 = 1000;

/// Samples that may stand in for others.
pub trait Reserve: Debug + Send + Sync {
    /// What is tried in place of `wanted` at an attempt, from 0; absent when nothing more is to be tried. It depends on
    /// the arguments alone.
    fn reserve(&self, wanted: SampleRequest, attempt: u64) -> Option<SampleIndex>;
}

impl Reserve for Order {
    fn reserve(&self, wanted: SampleRequest, attempt: u64) -> Option<SampleIndex> {
        Order::reserve(self, wanted.source as usize, wanted.epoch, wanted.index, attempt)
    }
}

/// What to do about a broken image.
#[derive(Debug, Clone)]
pub enum OnBroken {
    /// Another sample stands in for it.
    Replace(Arc<dyn Reserve>),
    /// Its pixels are black; who asked for it leaves it out.
    LeaveOut,
}

/// A sample that could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenSample {
    /// What was asked for.
    pub wanted: SampleRequest,
    /// Its key.
    pub key: String,
    /// Why it was not used.
    pub reason: SkipReason,
    /// What the decoder said.
    pub detail: String,
}

/// How many samples of one data set were asked for, and how many of them were broken.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    asked: u64,
    broken: u64,
    examples: Vec<String>,
}

impl Tally {
    /// Counts a sample.
    pub fn ask(&mut self) {
        self.asked += 1;
    }

    /// Counts a broken one.
    pub fn broke(&mut self, sample: &BrokenSample) {
        self.broken += 1;
        if self.examples.len() < 5 {
            self.examples.push(format!("{}: {}", sample.key, sample.detail));
        }
    }

    /// # Errors
    /// When the share of broken samples is above `limit`.
    pub fn check(&self, name: &str, samples: u64, limit: f64) -> Result<(), DataError> {
        let judged = self.asked.max(JUDGED_FROM.min(samples));
        if self.broken as f64 <= limit * judged as f64 {
            return Ok(());
        }
        Err(DataError::TooManyBroken {
            name: name.to_owned(),
            skipped: self.broken,
            total: self.asked,
            percent: 100.0 * self.broken as f64 / self.asked as f64,
            limit,
            report: self.examples.join("\n"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::ids::Epoch;

    #[test]
    fn the_share_is_judged_from_the_thousandth_on_or_of_the_whole_of_a_small_set() {
        let run = |asked: u64, broken: u64, samples: u64| {
            let mut tally = Tally::default();
            (0..asked).for_each(|_| tally.ask());
            for number in 0..broken {
                let wanted = SampleRequest { source: 0, index: SampleIndex(number), epoch: Epoch(0) };
                let (key, detail) = (number.to_string(), "cut off".to_owned());
                tally.broke(&BrokenSample { wanted, key, reason: SkipReason::BrokenImage, detail });
            }
            tally.check("a", samples, 0.01)
        };
        for (asked, broken, samples, passes) in [
            (10, 10, 5000, true),
            (10, 11, 5000, false),
            (2000, 20, 5000, true),
            (2000, 21, 5000, false),
            (50, 2, 200, true),
            (50, 3, 200, false),
            (50, 0, 200, true),
        ] {
            assert_eq!(run(asked, broken, samples).is_ok(), passes, "{broken} of {asked} of {samples}");
        }
        let error = run(50, 3, 200).unwrap_err().to_string();
        assert!(error.contains("3 of 50 samples are broken (6.00 %)") && error.contains("2: cut off"), "{error}");
    }
}
