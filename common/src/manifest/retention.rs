//! Which checkpoints may go.

use crate::ids::Step;

/// The smallest number of verified checkpoints that is ever kept.
pub const LEAST_KEPT: usize = 2;

/// Those of the committed `steps` that are not among the newest `keep`, and never one of the newest two.
pub fn to_delete(steps: &[Step], keep: usize) -> Vec<Step> {
    let mut sorted = steps.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    sorted.truncate(sorted.len().saturating_sub(keep.max(LEAST_KEPT)));
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stay_whatever_is_asked_for() {
        let check = |steps: &[u64], keep, expected: &[u64]| {
            let steps: Vec<Step> = steps.iter().copied().map(Step).collect();
            let deleted: Vec<u64> = to_delete(&steps, keep).into_iter().map(|step| step.0).collect();
            assert_eq!(deleted, expected);
        };
        check(&[30, 10, 20, 40], 3, &[10]);
        check(&[30, 10, 20, 40], 0, &[10, 20]);
        check(&[10, 20], 1, &[]);
        check(&[], 5, &[]);
    }
}
