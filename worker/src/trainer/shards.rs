//! Who updates which part of the flat buffer when the optimizer is sharded: ZeRO's first stage (Rajbhandari et al. 2020,
//! section 5.1). Each bucket is cut into one stretch a rank, so that it can be reduced and gathered by itself.

use super::layout::ALIGNMENT;
use common::{
    ids::{Rank, WorldSize},
    sampler,
};
use std::ops::Range;

/// One rank's view of the cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shards {
    /// By bucket: how many elements each rank has of it.
    rows: Vec<Vec<i64>>,
    /// By bucket: this rank's stretch of the flat buffer.
    own: Vec<Range<i64>>,
}

impl Shards {
    /// Cuts buckets, which begin and end at multiples of [`ALIGNMENT`].
    pub fn cut(buckets: &[Range<i64>], rank: Rank, world: WorldSize) -> Self {
        let lines = |range: &Range<i64>| ((range.end - range.start) / ALIGNMENT) as u64;
        let rows = |range: &Range<i64>| {
            sampler::rows(world, lines(range)).into_iter().map(|n| n as i64 * ALIGNMENT).collect::<Vec<i64>>()
        };
        let own = |range: &Range<i64>| {
            let slots = sampler::local_slots(rank, world, lines(range));
            range.start + slots.start as i64 * ALIGNMENT..range.start + slots.end as i64 * ALIGNMENT
        };
        Self { rows: buckets.iter().map(rows).collect(), own: buckets.iter().map(own).collect() }
    }

    /// How many elements each rank has of a bucket.
    pub fn rows(&self, bucket: usize) -> &[i64] {
        &self.rows[bucket]
    }

    /// This rank's stretch of a bucket.
    pub fn own(&self, bucket: usize) -> Range<i64> {
        self.own[bucket].clone()
    }

    /// This rank's stretches in the order of the buckets, and where each begins when they are put one after the other.
    pub fn placed(&self) -> impl Iterator<Item = (Range<i64>, i64)> {
        self.own.iter().scan(0, |place, range| {
            let start = *place;
            *place += range.end - range.start;
            Some((range.clone(), start))
        })
    }

    /// How many elements this rank has.
    pub fn elements(&self) -> i64 {
        self.own.iter().map(|range| range.end - range.start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranks_share_out_every_bucket(lengths in proptest::collection::vec(1i64..40, 1..6), world in 1u32..7) {
            let world = WorldSize(world);
            let mut end = 0;
            let buckets: Vec<Range<i64>> = lengths.iter().map(|lines| {
                let start = end;
                end += lines * ALIGNMENT;
                start..end
            }).collect();
            let all: Vec<Shards> = world.ranks().map(|rank| Shards::cut(&buckets, rank, world)).collect();
            for (bucket, range) in buckets.iter().enumerate() {
                let mut next = range.start;
                for (rank, shards) in all.iter().enumerate() {
                    let own = shards.own(bucket);
                    prop_assert_eq!(own.start, next);
                    prop_assert_eq!(own.end - own.start, shards.rows(bucket)[rank]);
                    next = own.end;
                }
                prop_assert_eq!(next, range.end);
            }
            let placed: i64 = all.iter().map(Shards::elements).sum();
            prop_assert_eq!(placed, end);
            for shards in &all {
                let end = shards.placed().last().map(|(range, start)| start + range.end - range.start);
                prop_assert_eq!(end, Some(shards.elements()));
            }
        }
    }
}
