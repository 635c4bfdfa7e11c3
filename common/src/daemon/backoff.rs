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

/// A number from 0 to 1 that a name gives: the same in every process and on every machine, and different for most names.
/// Process ids do not do: in containers they are all alike.
pub fn spread_of(name: &str) -> f64 {
    // FNV-1a, and a last stir, as short names with one digit of difference would lie close together.
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let stirred = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (stirred >> 40) as f64 / f64::from(1_u32 << 24)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_spread_and_the_same_name_does_not() {
        let spreads: Vec<f64> = (0..1000).map(|n| spread_of(&format!("worker-{n}"))).collect();
        assert!(spreads.iter().all(|spread| (0.0..1.0).contains(spread)));
        let tenths = |tenth: usize| spreads.iter().filter(|spread| (**spread * 10.0) as usize == tenth).count();
        assert!(
            (0..10).all(|tenth| (60..=140).contains(&tenths(tenth))),
            "{:?}",
            (0..10).map(tenths).collect::<Vec<_>>()
        );
        assert_eq!(spread_of("worker-7"), spreads[7]);
    }

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        let waits: Vec<u128> = (0..4).map(|_| backoff.next(0.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 350, 350]);
        backoff.reset();
        assert_eq!(backoff.next(1.0), Duration::from_millis(50));
    }
}
