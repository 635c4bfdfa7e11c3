//! Waits between tries: doubling, bounded, and spread out so that many do not come at once.

use std::time::Duration;

/// How long to wait before the next try.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    tries: u32,
}

impl Backoff {
    /// From `first`, doubling up to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, tries: 0 }
    }

    /// The wait before the next try. `spread`, 0 to 1, takes up to half of it away: a number that differs among those
    /// who try.
    pub fn next(&mut self, spread: f64) -> Duration {
        let whole = self.first.saturating_mul(1 << self.tries.min(20)).min(self.longest);
        self.tries = self.tries.saturating_add(1);
        whole.mul_f64(1.0 - 0.5 * spread.clamp(0.0, 1.0))
    }

    /// A try worked: the next wait is the first again.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        let waits: Vec<u128> = (0..4).map(|_| backoff.next(0.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 350, 350]);
        backoff.reset();
        assert_eq!(backoff.next(1.0), Duration::from_millis(50));
    }
}
