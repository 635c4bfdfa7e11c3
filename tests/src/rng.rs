//! Random numbers of a scenario: all of them come from its seed.

use std::time::Duration;

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// Numbers of a seed for one purpose; other purposes are not disturbed by how many are drawn.
    pub fn new(seed: u64, purpose: &str) -> Self {
        let stirred = purpose.bytes().fold(seed ^ 0x9e37_79b9_7f4a_7c15, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self(stirred)
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it has no end")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// From `low` to `high`, both possible.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True so often of a hundred.
    pub fn percent(&mut self, share: u64) -> bool {
        self.below(100) < share
    }

    /// A time between two, in milliseconds.
    pub fn millis(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.between(low, high))
    }

    /// A time until something that happens at a constant rate, once in `mean`.
    pub fn exponential(&mut self, mean: Duration) -> Duration {
        // 53 bits in (0, 1]: the logarithm is finite.
        let uniform = ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        mean.mul_f64(-uniform.ln())
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_times_have_their_mean_and_are_those_of_the_seed() {
        let mean = Duration::from_secs(10);
        let all = |seed| {
            let mut rng = Rng::new(seed, "when");
            (0..10_000).map(|_| rng.exponential(mean)).collect::<Vec<_>>()
        };
        let found = all(1).iter().sum::<Duration>() / 10_000;
        assert!((found.as_secs_f64() - 10.0).abs() < 0.3, "{found:?}");
        assert_eq!(all(1), all(1));
        assert_ne!(all(1), all(2));
    }
}
