//! What time it is for jobs: the wall clock's time, without its jumps.

use super::outside::Outside;
use common::time::Timestamp;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The wall clock is followed by so much faster or slower than time passes: one part in so many.
const SLEW: u64 = 1000;

/// Gives the time that is written down and waited by. It never goes back, and flows as the monotonic clock does, a thousandth faster
/// or slower while it is not where the wall clock is: a wall clock that jumps an hour (a machine that just found its time
/// server) makes no wait an hour shorter or longer.
#[derive(Debug)]
pub(super) struct Calendar {
    outside: Arc<dyn Outside>,
    /// What was given last, in microseconds since 1970.
    given: u64,
    /// When.
    at: Instant,
}

impl Calendar {
    /// Begins with what the wall clock shows, and not before `latest`, which was written down already.
    pub(super) fn begin(outside: Arc<dyn Outside>, latest: Timestamp) -> Self {
        let given = outside.wall().max(latest).0.saturating_mul(1000);
        Self { outside, given, at: Instant::now() }
    }

    /// Now.
    pub(super) fn now(&mut self) -> Timestamp {
        let at = Instant::now();
        self.given = advance(self.given, at.duration_since(self.at), self.outside.wall());
        self.at = at;
        Timestamp(self.given / 1000)
    }
}

/// The time in microseconds, `elapsed` after it was `given`, when the wall clock shows `wall`.
fn advance(given: u64, elapsed: Duration, wall: Timestamp) -> u64 {
    let elapsed = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
    let slew = elapsed / SLEW;
    let even = given.saturating_add(elapsed);
    // The wall clock says whole milliseconds: what is within one of it is where it is.
    let wall = wall.0.saturating_mul(1000);
    if even < wall {
        even.saturating_add(slew.min(wall - even))
    } else if even > wall.saturating_add(999) {
        even - slew.min(even - wall - 999)
    } else {
        even
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In milliseconds.
    fn check(given: u64, elapsed: u64, wall: u64, expected: u64) {
        let found = advance(given * 1000, Duration::from_millis(elapsed), Timestamp(wall));
        assert_eq!(found, expected * 1000, "{given} ms, {elapsed} ms later, the wall clock at {wall} ms");
    }

    #[test]
    fn it_follows_the_wall_clock_without_its_jumps() {
        check(5_000, 100, 5_100, 5_100);
        check(5_000, 0, 5_000, 5_000);
        check(5_000, 10_000, 15_005, 15_005);
        check(5_000, 10_000, 3_605_100, 15_010);
        check(5_000, 0, 3_605_100, 5_000);
        let back = advance(3_605_000_000, Duration::from_secs(10), Timestamp(5_100));
        assert_eq!(back, 3_614_990_000, "it goes on, if slower");
    }
}
