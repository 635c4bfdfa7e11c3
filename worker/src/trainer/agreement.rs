//! What ranks settle between hosts: no device waits for it.

use crate::collective::{Collective, CollectiveError};
use tch::Tensor;

/// Whether any rank says yes. Every rank gets the same answer at the same step.
///
/// # Errors
/// When a peer fails.
pub fn agree(collective: &dyn Collective, yes: bool) -> Result<bool, CollectiveError> {
    Ok(sums(collective, &[i64::from(yes)])?[0] > 0)
}

/// Sums over ranks.
///
/// # Errors
/// When a peer fails.
pub fn sums(collective: &dyn Collective, mine: &[i64]) -> Result<Vec<i64>, CollectiveError> {
    let mut all = Tensor::from_slice(mine);
    collective.all_reduce_sum(&mut all)?;
    Ok((0..mine.len()).map(|i| all.int64_value(&[i as i64])).collect())
}
