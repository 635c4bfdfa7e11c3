//! How often each number came up, and what that says: range, middle, histogram.

use serde::Serialize;
use std::collections::BTreeMap;

/// Numbers, counted. Lengths and sizes repeat, so that this is small however many samples there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counts(BTreeMap<u64, u64>);

/// The range of some numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Spread {
    pub min: u64,
    pub median: u64,
    /// 95 of 100 numbers are no larger.
    pub p95: u64,
    pub max: u64,
}

/// Numbers of more than half as much, up to so much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Bucket {
    pub up_to: u64,
    pub count: u64,
}

impl Counts {
    pub(super) fn add(&mut self, number: u64) {
        *self.0.entry(number).or_default() += 1;
    }

    /// How many numbers there are.
    pub(super) fn len(&self) -> u64 {
        self.0.values().sum()
    }

    /// The smallest number that `percent` of 100 numbers do not exceed.
    fn percentile(&self, percent: u64) -> Option<u64> {
        let wanted = (self.len() * percent).div_ceil(100);
        let mut seen = 0;
        self.0.iter().find_map(|(number, count)| {
            seen += count;
            (seen >= wanted).then_some(*number)
        })
    }

    /// The range; absent where there are none.
    pub(super) fn spread(&self) -> Option<Spread> {
        let (min, max) = (*self.0.first_key_value()?.0, *self.0.last_key_value()?.0);
        Some(Spread { min, median: self.percentile(50)?, p95: self.percentile(95)?, max })
    }

    /// Buckets whose ends are powers of two.
    pub(super) fn histogram(&self) -> Vec<Bucket> {
        let mut buckets = BTreeMap::<u64, u64>::new();
        self.0.iter().for_each(|(number, count)| *buckets.entry(number.next_power_of_two()).or_default() += count);
        buckets.into_iter().map(|(up_to, count)| Bucket { up_to, count }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_sorted_numbers() {
        let mut counts = Counts::default();
        (1..=100).rev().for_each(|number| counts.add(number));
        assert_eq!(counts.spread(), Some(Spread { min: 1, median: 50, p95: 95, max: 100 }));
        counts.add(1_000);
        assert_eq!(counts.spread(), Some(Spread { min: 1, median: 51, p95: 96, max: 1_000 }));
        assert_eq!(counts.histogram().last(), Some(&Bucket { up_to: 1_024, count: 1 }));
        assert_eq!(counts.histogram().iter().map(|bucket| bucket.count).sum::<u64>(), 101);
        assert_eq!(Counts::default().spread(), None);
    }
}
