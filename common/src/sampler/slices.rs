//! Who computes which slots of a global batch.

use crate::ids::{Rank, WorldSize};
use std::ops::Range;

/// The slots of a rank: slot s of `slots` belongs to rank ⌊s·w/slots⌋, so that no number need divide another.
pub fn local_slots(rank: Rank, world: WorldSize, slots: u64) -> Range<u64> {
    let begin = |rank: u64| {
        let exact = u128::from(rank) * u128::from(slots);
        u64::try_from(exact.div_ceil(u128::from(world.0))).expect("no more than `slots`")
    };
    begin(u64::from(rank.0))..begin(u64::from(rank.0) + 1)
}

/// How many slots each rank has, by rank.
pub fn rows(world: WorldSize, slots: u64) -> Vec<u64> {
    let count = |rank| {
        let range = local_slots(rank, world, slots);
        range.end - range.start
    };
    world.ranks().map(count).collect()
}

/// A stretch of slots in chunks, cut where the slot's number is a multiple of `chunk`: a chunk is the same whoever
/// computes it, unless a rank's border cuts it.
///
/// # Panics
/// When `chunk` is 0.
pub fn chunks(slots: Range<u64>, chunk: u64) -> Vec<Range<u64>> {
    assert!(chunk > 0, "a chunk has at least one pair");
    let mut cut = Vec::new();
    let mut start = slots.start;
    while start < slots.end {
        let end = (start / chunk).saturating_add(1).saturating_mul(chunk).min(slots.end);
        cut.push(start..end);
        start = end;
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranks_share_out_all_slots_in_order_and_evenly(world in 1u32..9, slots in 0u64..500) {
            let world = WorldSize(world);
            let mut next = 0;
            for rank in world.ranks() {
                let range = local_slots(rank, world, slots);
                prop_assert_eq!(range.start, next);
                next = range.end;
                for slot in range {
                    prop_assert_eq!(slot * u64::from(world.0) / slots, u64::from(rank.0));
                }
            }
            prop_assert_eq!(next, slots);
            let rows = rows(world, slots);
            prop_assert!(rows.iter().max().unwrap() - rows.iter().min().unwrap() <= 1);
        }

        #[test]
        fn chunks_cover_a_stretch_and_are_cut_on_multiples(start in 0u64..100, length in 0u64..100, chunk in 1u64..40) {
            let cut = chunks(start..start + length, chunk);
            prop_assert_eq!(cut.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (start..start + length).collect::<Vec<_>>());
            for pair in cut.windows(2) {
                prop_assert_eq!(pair[0].end % chunk, 0);
            }
            prop_assert!(cut.iter().all(|c| c.end - c.start <= chunk));
        }
    }
}
