//! The captions of one global batch, put in order by length, so that a chunk is padded little.
//!
//! The order is made of the whole global batch's lengths: every rank makes the same one, and which captions make a chunk
//! does not depend on how many ranks there are. No caption leaves its batch, so the negatives of each stay what they were.

use std::cmp::Reverse;

/// For each slot of a chunked batch the number of the caption that it gets, by the captions' lengths in tokens.
///
/// A chunk's captions are of like length, and stand in the order in which they came. Chunks follow each other so that any
/// stretch of them has long and short ones: a rank's share is a stretch of slots, and all ranks get about as much to do. The
/// chunk that is not full comes last and has the captions with which the least is padded: no order pads less than this one.
///
/// # Panics
/// When `chunk` is 0.
pub fn by_length(lengths: &[u32], chunk: usize) -> Vec<usize> {
    assert!(chunk > 0, "a chunk has at least one caption");
    let mut longest_first: Vec<usize> = (0..lengths.len()).collect();
    longest_first.sort_by_key(|caption| (Reverse(lengths[*caption]), *caption));
    let rest = lengths.len() % chunk;
    let start = chunk * full_before_the_rest(&longest_first, lengths, chunk);
    let mut short: Vec<usize> = longest_first.drain(start..start + rest).collect();
    short.sort_unstable();
    let mut chunks: Vec<Vec<usize>> = longest_first.chunks(chunk).map(<[usize]>::to_vec).collect();
    chunks.iter_mut().for_each(|captions| captions.sort_unstable());
    spread(chunks.len()).into_iter().flat_map(|number| std::mem::take(&mut chunks[number])).chain(short).collect()
}

/// How many full chunks of captions, longest first, stand before those that fill no chunk, so that the least is padded.
fn full_before_the_rest(longest_first: &[usize], lengths: &[u32], chunk: usize) -> usize {
    let (full, rest) = (lengths.len() / chunk, lengths.len() % chunk);
    // A chunk is as wide as its first caption.
    let width =
        |at: usize, captions: usize| longest_first.get(at).map_or(0, |c| u64::from(lengths[*c])) * captions as u64;
    let mut before = 0;
    let mut after: u64 = (0..full).map(|number| width(rest + number * chunk, chunk)).sum();
    let mut best = (u64::MAX, 0);
    for number in 0..=full {
        best = best.min((before + width(number * chunk, rest) + after, number));
        if number < full {
            before += width(number * chunk, chunk);
            after -= width(rest + number * chunk, chunk);
        }
    }
    best.1
}

/// Tokens of padding in chunks of so many slots, each as wide as its longest caption.
pub fn padding(lengths: &[u32], order: &[usize], chunk: usize) -> u64 {
    let padded = |captions: &[usize]| {
        let longest = captions.iter().map(|caption| lengths[*caption]).max().unwrap_or(0);
        captions.iter().map(|caption| u64::from(longest - lengths[*caption])).sum::<u64>()
    };
    order.chunks(chunk).map(padded).sum()
}

/// The numbers below `n`, so that each stretch of them has high and low ones in turn: what is below `n` of the numbers of as
/// many bits, read backwards (van der Corput's sequence).
fn spread(n: usize) -> Vec<usize> {
    let bits = n.next_power_of_two().trailing_zeros();
    let backwards = |number: usize| if bits == 0 { 0 } else { number.reverse_bits() >> (usize::BITS - bits) };
    (0..n.next_power_of_two()).map(backwards).filter(|number| *number < n).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::{
        ids::WorldSize,
        sampler::{chunks, local_slots},
    };
    use proptest::prelude::*;

    #[test]
    fn chunks_are_of_like_length_and_keep_the_order_within() {
        let lengths = [9, 1, 5, 9, 2, 5, 8, 3, 4];
        assert_eq!(spread(4), [0, 2, 1, 3]);
        // By length: 9 9 | 8 | 5 5 | 4 3 | 2 1, and the one that is not full comes last.
        let order = by_length(&lengths, 2);
        assert_eq!(order, [0, 3, 7, 8, 2, 5, 1, 4, 6]);
        let as_they_came: Vec<usize> = (0..9).collect();
        assert_eq!((padding(&lengths, &order, 2), padding(&lengths, &as_they_came, 2)), (2, 20));
        // The one long caption is a chunk of its own.
        assert_eq!(by_length(&[2, 2, 9, 2, 2], 2), [0, 1, 3, 4, 2]);
        assert_eq!(by_length(&[], 4), Vec::<usize>::new());
        assert_eq!(by_length(&[3], 4), [0]);
    }

    fn lengths() -> impl Strategy<Value = Vec<u32>> {
        prop::collection::vec(1u32..513, 0..400)
    }

    proptest! {
        #[test]
        fn every_caption_of_the_batch_has_one_slot(lengths in lengths(), chunk in 1usize..40) {
            let mut order = by_length(&lengths, chunk);
            order.sort_unstable();
            prop_assert_eq!(order, (0..lengths.len()).collect::<Vec<_>>());
        }

        #[test]
        fn chunks_hold_the_same_captions_whoever_computes_them(lengths in lengths(), chunk in 1u64..40, world in 1u32..9) {
            let order = by_length(&lengths, chunk as usize);
            let of = |slots: std::ops::Range<u64>| order[slots.start as usize..slots.end as usize].to_vec();
            let one: Vec<Vec<usize>> = chunks(0..order.len() as u64, chunk).into_iter().map(of).collect();
            let world = WorldSize(world);
            let mut all = Vec::new();
            for rank in world.ranks() {
                for part in chunks(local_slots(rank, world, order.len() as u64), chunk) {
                    let whole = &one[(part.start / chunk) as usize];
                    let part = of(part);
                    // A rank's border may cut a chunk; what it holds is never of another.
                    prop_assert!(part.iter().all(|caption| whole.contains(caption)));
                    all.extend(part);
                }
            }
            prop_assert_eq!(all, order);
        }

        #[test]
        fn padding_never_grows(lengths in lengths(), chunk in 1usize..40) {
            let as_they_came: Vec<usize> = (0..lengths.len()).collect();
            prop_assert!(padding(&lengths, &by_length(&lengths, chunk), chunk) <= padding(&lengths, &as_they_came, chunk));
        }

        #[test]
        fn ranks_get_about_as_much_to_do(seed in 0u64..50, world in 2u64..9) {
            let (batch, chunk) = (1024u64, 16usize);
            let mix = |n: u64| (n ^ seed << 17).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56;
            let lengths: Vec<u32> = (0..batch).map(|n| 8 + mix(n + 1) as u32).collect();
            let order = by_length(&lengths, chunk);
            let share = |rank: u64| {
                let slots = (rank * batch / world) as usize..((rank + 1) * batch / world) as usize;
                order[slots].iter().map(|caption| u64::from(lengths[*caption])).sum::<u64>() as f64
            };
            let shares: Vec<f64> = (0..world).map(share).collect();
            let mean = shares.iter().sum::<f64>() / world as f64;
            prop_assert!(shares.iter().all(|share| (share / mean - 1.0).abs() < 0.25), "{shares:?}");
        }
    }
}
