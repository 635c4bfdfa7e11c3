//! How many units (samples, or whole batches) each data set gives to each step, as a closed form of the step.
//!
//! In a period of T steps data set d gives n_d units, Σ n_d = T·U, so a step has U units. Rounding t·n_d/T for each data
//! set by itself would not add up to U in every step, so all share one draw: with n_d = T·b_d + f_d, a step takes b_d from
//! each set and the remainder Σf_d/T by systematic sampling. The f_d are laid end to end on a line on which a comb of
//! pitch T stands, and the comb moves by g with every step, g/T being near the golden ratio and prime to T. So each step has
//! ⌊n_d/T⌋ or ⌈n_d/T⌉ of each, U in all; T steps in a row have exactly n_d; and what stands before a step is a sum of
//! floors of a line, which Euclid's algorithm gives in O(log T).

use super::{CounterRng, Purpose};
use crate::ids::{Epoch, SampleIndex};

/// The composition of every step.
#[derive(Debug, Clone)]
pub(super) struct Rates {
    /// T, in steps.
    period: u64,
    /// How far the comb moves in a step.
    pace: u64,
    /// Where the comb stands at step 0.
    phase: u64,
    shares: Vec<Share>,
}

#[derive(Debug, Clone, Copy)]
struct Share {
    /// b_d: what every step has.
    whole: u64,
    /// Where f_d begins and ends on the line.
    line: (u64, u64),
}

impl Rates {
    /// `units` units a step, shared in proportion to `weights`.
    ///
    /// # Panics
    /// When no weight is above 0.
    pub(super) fn weighted(seed: u64, weights: &[u64], units: u64) -> Self {
        let divisor = weights.iter().fold(0, |all, weight| gcd(all, *weight));
        assert!(divisor > 0, "at least one weight is above 0");
        let sum: u64 = weights.iter().map(|weight| weight / divisor).sum();
        let common = gcd(sum, units);
        let per_period: Vec<u64> = weights.iter().map(|weight| weight / divisor * (units / common)).collect();
        Self::exact(seed, &per_period, sum / common)
    }

    /// `per_period` units in `period` steps; the period divides their sum.
    pub(super) fn exact(seed: u64, per_period: &[u64], period: u64) -> Self {
        let mut end = 0;
        let shares = per_period.iter().map(|units| {
            let line = (end, end + units % period);
            end = line.1;
            Share { whole: units / period, line }
        });
        let shares = shares.collect();
        // 2^64 divided by the golden ratio.
        let mut pace = ((u128::from(period) * 0x9E37_79B9_7F4A_7C15) >> 64) as u64;
        while gcd(pace, period) != 1 {
            pace += 1;
        }
        let phase = CounterRng::new(seed, Purpose::Mix, 0, SampleIndex(0), Epoch(0)).below(period);
        Self { period, pace, phase, shares }
    }

    /// How many units the data set gives to a step.
    pub(super) fn count(&self, step: u64, source: usize) -> u64 {
        let Share { whole, line } = self.shares[source];
        let comb = (u128::from(step) * u128::from(self.pace) + u128::from(self.phase)) % u128::from(self.period);
        let teeth = |place: u64| ((comb + u128::from(place)) / u128::from(self.period)) as u64;
        whole + teeth(line.1) - teeth(line.0)
    }

    /// The most units that a step ever has of a data set.
    pub(super) fn most(&self, source: usize) -> u64 {
        let Share { whole, line } = self.shares[source];
        whole + u64::from(line.1 > line.0)
    }

    /// How many units the data set gave to the steps before this one.
    pub(super) fn before(&self, step: u64, source: usize) -> u64 {
        let Share { whole, line } = self.shares[source];
        let passed = |place: u64| floor_sum(step, self.period, self.pace, u128::from(self.phase) + u128::from(place));
        let drawn = u64::try_from(passed(line.1) - passed(line.0)).expect("at most one unit a step");
        step * whole + drawn
    }

    /// The step that unit number `unit` of a data set comes up in; absent when it gives none.
    pub(super) fn step_of(&self, unit: u64, source: usize) -> Option<u64> {
        if self.most(source) == 0 {
            return None;
        }
        let comes_before = |step: u64| self.before(step, source) > unit;
        // `most` bounds the first guess from below; the search widens it to a step that is late enough.
        let mut late = unit / self.most(source) + 1;
        while !comes_before(late) {
            late = late.checked_mul(2).filter(|late| *late < 1 << 56)?;
        }
        let mut early = 0;
        while early + 1 < late {
            let middle = early + (late - early) / 2;
            if comes_before(middle) { late = middle } else { early = middle }
        }
        Some(early)
    }
}

/// Σ_{k<n} ⌊(a·k + b)/m⌋, by Euclid's algorithm: swap the axes whenever the slope is below 1.
fn floor_sum(n: u64, m: u64, a: u64, b: u128) -> u128 {
    let (mut n, mut m, mut a, mut b) = (u128::from(n), u128::from(m), u128::from(a), b);
    let mut sum = 0;
    while n > 0 {
        sum += n * (n - 1) / 2 * (a / m) + n * (b / m);
        (a, b) = (a % m, b % m);
        let top = a * n + b;
        // A line of slope 0 ends here: `top` is below `m`.
        (n, m, a, b) = (top / m, a, m, top % m);
    }
    sum
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// What a data set takes of their memory.
#[cfg(test)]
pub(super) const SHARE_BYTES: usize = size_of::<Share>();

#[cfg(test)]
#[path = "tests/rates.rs"]
mod tests;
