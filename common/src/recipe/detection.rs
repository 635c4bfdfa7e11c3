//! What counts as a rank that is stuck, slow, or not like the others: `[faults]`.

use super::{
    RecipeError,
    raw::Table,
    read::{float, unsigned},
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// When something is wrong with a rank that lives.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// A rank of a training that gets no further for this long, or for three times the 99th percentile of its recent steps if
    /// that is more, is ended as stuck. 0 means that no rank ever is.
    pub hang_floor_s: u64,
    /// The same before the first steps, and for what is no part of a step: loading, evaluations, checkpoints.
    pub hang_loading_s: u64,
    /// Every so many steps, and before each checkpoint, the ranks compare a digest of what is trained. 0 means never.
    pub digest_every_steps: u64,
    /// A rank whose own time of a step is more than this many times the median of the others' is named.
    pub straggler_factor: f64,
}

impl Default for Detection {
    fn default() -> Self {
        Self { hang_floor_s: 10, hang_loading_s: 1800, digest_every_steps: 100, straggler_factor: 1.5 }
    }
}

/// How many times the 99th percentile of its recent steps a rank may get no further.
const SLOWER: u32 = 3;

impl Detection {
    /// How long a rank may get no further in what is a part of steps of which the slowest took `slow_step`; absent when that
    /// is not known yet, and of what is no part of a step. Absent when no rank is ever stuck.
    pub fn limit(&self, slow_step: Option<Duration>) -> Option<Duration> {
        let floor = self.floor()?;
        Some(match slow_step {
            Some(slow) => floor.max(slow.saturating_mul(SLOWER)),
            None => floor.max(Duration::from_secs(self.hang_loading_s)),
        })
    }

    /// The shortest limit; absent when no rank is ever stuck.
    pub fn floor(&self) -> Option<Duration> {
        (self.hang_floor_s > 0).then_some(Duration::from_secs(self.hang_floor_s))
    }

    /// Reads the keys of `[faults]`.
    pub(super) fn read(table: &mut Table<'_>) -> Result<Self, RecipeError> {
        let usual = Self::default();
        Ok(Self {
            hang_floor_s: table.get("hang_floor_s", unsigned)?.unwrap_or(usual.hang_floor_s),
            hang_loading_s: table.get("hang_loading_s", unsigned)?.unwrap_or(usual.hang_loading_s),
            digest_every_steps: table.get("digest_every_steps", unsigned)?.unwrap_or(usual.digest_every_steps),
            straggler_factor: table
                .get("straggler_factor", |value| match float(value)? {
                    factor if factor > 1.0 => Ok(factor),
                    factor => Err(format!("is {factor}, it must be more than 1")),
                })?
                .unwrap_or(usual.straggler_factor),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_learned_above_the_floor_and_long_before_anything_is_known() {
        let detection = Detection::default();
        let check = |slow: Option<u64>, expected: u64| {
            assert_eq!(detection.limit(slow.map(Duration::from_secs)), Some(Duration::from_secs(expected)));
        };
        check(None, 1800);
        check(Some(1), 10);
        check(Some(20), 60);
        assert_eq!(Detection { hang_floor_s: 0, ..detection }.limit(None), None);
    }
}
