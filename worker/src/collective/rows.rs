//! Rows shared out among ranks: rank r has the next `rows[r]`.

use super::CollectiveError;
use common::ids::WorldSize;
use std::ops::Range;
use tch::Tensor;

/// How many rows there are of a tensor; absent without a dimension.
pub(super) fn count(tensor: &Tensor) -> Option<i64> {
    tensor.size().first().copied()
}

/// Elements of one row.
pub(super) fn width(tensor: &Tensor) -> usize {
    tensor.size().iter().skip(1).product::<i64>() as usize
}

/// Checks that `rows` names every rank, and that a tensor of `found` rows is what is expected.
///
/// # Errors
/// When not.
pub(super) fn check(
    operation: &'static str,
    rows: &[i64],
    world: WorldSize,
    found: Option<i64>,
    expected: Option<i64>,
) -> Result<(), CollectiveError> {
    if rows.len() == world.0 as usize && rows.iter().all(|n| *n >= 0) && found.is_some() && found == expected {
        return Ok(());
    }
    let found = found.map_or("a tensor without rows".to_owned(), |n| format!("{n} rows"));
    let what = format!("{found} where {rows:?} is to be shared by {world} ranks");
    Err(CollectiveError::Unsupported { operation, what })
}

/// Each rank's stretch, in units of which a row has `width`.
pub(super) fn stretches(rows: &[i64], width: usize) -> Vec<Range<usize>> {
    let mut end = 0;
    let next = |rows: &i64| {
        let start = end;
        end += *rows as usize * width;
        start..end
    };
    rows.iter().map(next).collect()
}
