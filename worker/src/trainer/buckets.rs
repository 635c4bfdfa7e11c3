//! Gradient buckets: stretches of the flat gradient that are reduced over the ranks as soon as the backward pass has
//! filled them, while it goes on with others (Li et al. 2020, "PyTorch Distributed", section 3.2).
//!
//! Every rank launches them in the same order, whatever order they become ready in: a bucket waits for those before it.

use std::ops::Range;

/// The first bucket to be launched is small, so that communication begins early: 1 MiB.
const FIRST_BYTES: i64 = 1 << 20;
/// The others: 25 MiB.
const BYTES: i64 = 25 << 20;

/// A variable in the flat buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// Where it lies, in elements, padding behind it included.
    pub range: Range<i64>,
    /// How far it is from the input: what is deeper has its gradient earlier.
    pub depth: i64,
}

/// Which stretches of the flat buffer are reduced together, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets {
    /// By launch: the stretch of the flat buffer, in elements.
    ranges: Vec<Range<i64>>,
    /// By variable: its bucket's place in the order of launch.
    of: Vec<usize>,
}

impl Buckets {
    /// Cuts the flat buffer. `variables` cover it one after the other.
    pub fn cut(variables: &[Stretch], element_bytes: i64) -> Self {
        // (elements, the depth that is ready last, variables)
        let mut cut: Vec<(Range<i64>, i64, Range<usize>)> = Vec::new();
        for (i, variable) in variables.iter().enumerate() {
            let limit = if cut.len() <= 1 { FIRST_BYTES } else { BYTES };
            let full = |range: &Range<i64>| (range.end - range.start) * element_bytes >= limit;
            match cut.last_mut() {
                Some((range, depth, members)) if !full(range) => {
                    range.end = variable.range.end;
                    *depth = (*depth).min(variable.depth);
                    members.end = i + 1;
                }
                _ => cut.push((variable.range.clone(), variable.depth, i..i + 1)),
            }
        }
        // Stable: buckets of one depth stay in the order of the buffer.
        cut.sort_by_key(|(_, depth, _)| std::cmp::Reverse(*depth));
        let mut of = vec![0; variables.len()];
        for (place, (_, _, members)) in cut.iter().enumerate() {
            of[members.clone()].fill(place);
        }
        Self { ranges: cut.into_iter().map(|(range, _, _)| range).collect(), of }
    }

    /// The stretches, in the order of launch.
    pub fn ranges(&self) -> &[Range<i64>] {
        &self.ranges
    }
}

/// What one backward pass has filled so far. Pure: it says what may be launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    of: Vec<usize>,
    seen: Vec<bool>,
    /// By bucket: variables whose gradient is still to come.
    missing: Vec<usize>,
    launched: usize,
}

impl Readiness {
    /// Nothing is filled.
    pub fn new(buckets: &Buckets) -> Self {
        let mut missing = vec![0; buckets.ranges.len()];
        buckets.of.iter().for_each(|bucket| missing[*bucket] += 1);
        Self { of: buckets.of.clone(), seen: vec![false; buckets.of.len()], missing, launched: 0 }
    }

    /// A variable's gradient is complete: which buckets are to be launched now, in this order. A second word about the
    /// same variable changes nothing.
    pub fn ready(&mut self, variable: usize) -> Range<usize> {
        if !std::mem::replace(&mut self.seen[variable], true) {
            self.missing[self.of[variable]] -= 1;
        }
        let first = self.launched;
        while self.missing.get(self.launched) == Some(&0) {
            self.launched += 1;
        }
        first..self.launched
    }

    /// The backward pass is over: variables without a gradient in it do not hold up the rest any longer.
    pub fn rest(&mut self) -> Range<usize> {
        let first = std::mem::replace(&mut self.launched, self.missing.len());
        first..self.missing.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stretches(sizes: &[(i64, i64)]) -> Vec<Stretch> {
        let mut end = 0;
        let stretch = |(length, depth): &(i64, i64)| {
            let start = end;
            end += length;
            Stretch { range: start..end, depth: *depth }
        };
        sizes.iter().map(stretch).collect()
    }

    #[test]
    fn the_deepest_go_first_and_the_first_is_small() {
        let mib = (1 << 20) / 4;
        let variables = stretches(&[(mib, 3), (20 * mib, 2), (10 * mib, 2), (mib, 1), (mib / 2, 0)]);
        let buckets = Buckets::cut(&variables, 4);
        assert_eq!(buckets.ranges(), [0..mib, mib..31 * mib, 31 * mib..32 * mib + mib / 2]);
        assert_eq!(buckets.of, [0, 1, 1, 2, 2]);
        // Vectors lie first in the buffer, but the input's are among them: they go last.
        let variables = stretches(&[(16, 0), (2 * mib, 2), (26 * mib, 1)]);
        assert_eq!(Buckets::cut(&variables, 4).ranges(), [2 * mib + 16..28 * mib + 16, 0..2 * mib + 16]);
    }

    #[test]
    fn a_bucket_waits_for_those_before_it() {
        let variables = stretches(&[(1 << 18, 2), (25 << 18, 1), (16, 0), (16, 0)]);
        let buckets = Buckets::cut(&variables, 4);
        assert_eq!(buckets.of, [0, 1, 2, 2]);
        let mut readiness = Readiness::new(&buckets);
        assert_eq!(readiness.ready(1), 0..0);
        assert_eq!(readiness.ready(1), 0..0);
        assert_eq!(readiness.ready(0), 0..2);
        assert_eq!(readiness.ready(3), 2..2);
        assert_eq!(readiness.rest(), 2..3);
        assert_eq!(readiness.rest(), 3..3);
    }

    proptest! {
        #[test]
        fn every_bucket_is_launched_once_and_in_order(
            sizes in proptest::collection::vec((1i64..200_000, 0i64..5), 1..40), order in any::<u64>(), told in 0usize..40,
        ) {
            let variables = stretches(&sizes);
            let buckets = Buckets::cut(&variables, 4);
            let covered: i64 = buckets.ranges().iter().map(|range| range.end - range.start).sum();
            prop_assert_eq!(covered, variables.last().unwrap().range.end);
            let mut readiness = Readiness::new(&buckets);
            let mut launched = Vec::new();
            // Some order; some variables never come.
            let n = variables.len();
            let step = (order as usize % n) | 1;
            for i in 0..told.min(n) {
                launched.extend(readiness.ready((i * step + order as usize % n) % n));
            }
            launched.extend(readiness.rest());
            prop_assert_eq!(launched, (0..buckets.ranges().len()).collect::<Vec<_>>());
        }
    }
}
