//! Orders against what one would count by hand: every sample where it belongs, and found there again.

use super::*;
use crate::sampler::OrderSource;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn spec(sizes: &[u64], global_batch: u64, policy: Policy, tail: Tail, weights: Option<Vec<u32>>) -> OrderSpec {
    let source = |(number, samples): (usize, &u64)| OrderSource {
        name: format!("s{number}"),
        samples: *samples,
        // Every other data set is shuffled in blocks.
        shuffle: if number % 2 == 0 { Shuffle::Full } else { Shuffle::Blocks { block: 3, window: 20 } },
    };
    let sources = sizes.iter().enumerate().map(source).collect();
    OrderSpec { seed: 17, global_batch, sources, policy, tail, segments: vec![Segment::first(weights)] }
}

fn order(sizes: &[u64], global_batch: u64, policy: Policy, tail: Tail, weights: Option<Vec<u32>>) -> Order {
    Order::new(spec(sizes, global_batch, policy, tail, weights)).unwrap()
}

fn batch(order: &Order, step: u64) -> Vec<Draw> {
    order.draws(Step(step), 0..order.spec().global_batch).collect()
}

const POLICIES: [Policy; 2] = [Policy::OneSource, Policy::Mixed];
const TAILS: [Tail; 2] = [Tail::Drop, Tail::Carry];

/// Mixes of every kind whose data sets are small enough for their epochs to end often.
fn mixes() -> Vec<Order> {
    let mut mixes = Vec::new();
    for policy in POLICIES {
        for tail in TAILS {
            for weights in [None, Some(vec![3, 1, 0]), Some(vec![1, 1, 5])] {
                mixes.push(order(&[100, 37, 61], 16, policy, tail, weights));
            }
            mixes.push(order(&[50], 16, policy, tail, None));
        }
    }
    mixes
}

#[test]
fn without_weights_an_epoch_has_each_sample_at_most_once_and_leaves_less_than_a_batch() {
    let check = |policy, per_epoch: u64, one_source: bool| {
        let order = order(&[100, 37, 19], 10, policy, Tail::Drop, None);
        assert_eq!(order.steps_of(1), per_epoch);
        for epoch in 0..3 {
            let mut seen = BTreeSet::new();
            for step in epoch * per_epoch..(epoch + 1) * per_epoch {
                let draws = batch(&order, step);
                assert!(draws.iter().all(|draw| draw.epoch == Epoch(epoch)));
                assert!(!one_source || draws.iter().all(|draw| draw.source == draws[0].source));
                assert!(draws.iter().all(|draw| seen.insert((draw.source, draw.index))));
            }
            assert_eq!(seen.len() as u64, per_epoch * 10);
        }
    };
    check(Policy::OneSource, 10 + 3 + 1, true);
    check(Policy::Mixed, 15, false);
}

#[test]
fn with_the_tail_dropped_no_epoch_has_a_sample_twice_and_no_batch_two_epochs_of_a_set() {
    for order in mixes().into_iter().filter(|order| order.spec().tail == Tail::Drop) {
        let mut seen = BTreeSet::new();
        for step in 0..200 {
            let mut epochs = BTreeMap::new();
            for draw in batch(&order, step) {
                assert!(
                    seen.insert((draw.source, draw.epoch, draw.index)),
                    "{:?}, step {step}: {draw:?}",
                    order.spec()
                );
                assert_eq!(*epochs.entry(draw.source).or_insert(draw.epoch), draw.epoch);
            }
            assert!(order.repeats(Step(step)).is_empty());
        }
        // Of each epoch that is over, at most what two batches take is left out.
        for (source, size) in order.spec().sources.iter().map(|source| source.samples).enumerate() {
            let of = |epoch| seen.iter().filter(|(s, e, _)| (*s, *e) == (source, Epoch(epoch))).count() as u64;
            for epoch in (0..).take_while(|epoch| of(epoch + 1) > 0) {
                assert!(of(epoch) + 30 > size, "{:?}: epoch {epoch} of set {source} has {}", order.spec(), of(epoch));
            }
        }
    }
}

#[test]
fn carried_epochs_have_every_sample_exactly_once_and_repeats_are_told() {
    for order in mixes().into_iter().filter(|order| order.spec().tail == Tail::Carry) {
        let (mut seen, mut repeats) = (BTreeSet::new(), 0);
        for step in 0..300 {
            let draws = batch(&order, step);
            assert!(draws.iter().all(|draw| seen.insert((draw.source, draw.epoch, draw.index))));
            // By brute force.
            let mut slots = BTreeMap::new();
            let mut expected = Vec::new();
            for (slot, draw) in (0..).zip(&draws) {
                match slots.get(&(draw.source, draw.index)) {
                    Some(of) => expected.push(Repeat { slot, of: *of }),
                    None => drop(slots.insert((draw.source, draw.index), slot)),
                }
            }
            assert_eq!(order.repeats(Step(step)), expected, "{:?}, step {step}", order.spec());
            repeats += expected.len();
        }
        for (source, size) in order.spec().sources.iter().map(|source| source.samples).enumerate() {
            let of = |epoch| seen.iter().filter(|(s, e, _)| (*s, *e) == (source, Epoch(epoch))).count() as u64;
            let whole =
                (0..).take_while(|epoch| of(epoch + 1) > 0).inspect(|epoch| assert_eq!(of(*epoch), size)).count();
            let weight = order.spec().segments[0].weights.as_ref().map_or(1, |weights| weights[source]);
            assert!(whole > 0 || weight == 0, "{:?}: set {source} was never gone through", order.spec());
        }
        assert!(repeats > 0, "{:?}: no batch of 300 straddled an epoch's end with a repeat", order.spec());
    }
}

#[test]
fn every_slot_is_found_again_and_what_is_left_out_is_not() {
    for order in mixes() {
        let mut seen = BTreeSet::new();
        for step in 0..60 {
            for (slot, draw) in (0..).zip(batch(&order, step)) {
                assert_eq!(order.find(draw.source, draw.index, draw.epoch), Some((Step(step), slot)), "{draw:?}");
                seen.insert((draw.source, draw.index));
            }
        }
        for source in 0..order.spec().sources.len() {
            for index in (0..order.spec().sources[source].samples).map(SampleIndex) {
                let Some((step, slot)) = order.find(source, index, Epoch(0)) else { continue };
                assert_eq!((order.draw(step, slot).source, order.draw(step, slot).index), (source, index));
                assert!(step.0 >= 60 || seen.contains(&(source, index)));
            }
        }
    }
}

proptest! {
    #[test]
    fn a_batch_is_the_same_however_it_is_cut(mix in 0usize..16, step in 0u64..1_000_000, cut in 0u64..=16) {
        let order = &mixes()[mix];
        let whole = batch(order, step);
        let cut: Vec<Draw> = order.draws(Step(step), 0..cut).chain(order.draws(Step(step), cut..16)).collect();
        prop_assert_eq!(&whole, &cut);
        prop_assert_eq!(order.draw(Step(step), 5), whole[5]);
    }
}

#[test]
fn weights_share_out_batches_or_samples_to_within_one_a_step() {
    let order = |policy| order(&[1000, 500, 400], 64, policy, Tail::Carry, Some(vec![5, 2, 1]));
    for step in 0..500 {
        let counts = batch(&order(Policy::Mixed), step).iter().fold([0; 3], |mut counts, draw| {
            counts[draw.source] += 1;
            counts
        });
        assert_eq!(counts, [40, 16, 8]);
    }
    let firsts: Vec<usize> = (0..800).map(|step| batch(&order(Policy::OneSource), step)[0].source).collect();
    for eight in firsts.windows(8) {
        assert_eq!([0, 1, 2].map(|source| eight.iter().filter(|s| **s == source).count()), [5, 2, 1]);
    }
    let mixed: Vec<usize> = batch(&order(Policy::Mixed), 3).iter().map(|draw| draw.source).collect();
    assert!(mixed.windows(2).filter(|pair| pair[0] != pair[1]).count() > 15, "sets stand in blocks: {mixed:?}");
}

#[test]
fn new_weights_leave_the_past_alone_and_every_set_goes_on_where_it_stands() {
    for policy in POLICIES {
        let before = order(&[100, 37, 61], 16, policy, Tail::Carry, Some(vec![3, 1, 0]));
        let after = before.with_weights_from(Step(23), Some(vec![1, 1, 5])).unwrap();
        let after = after.with_weights_from(Step(90), None).unwrap();
        assert_eq!(after.spec().segments.len(), 3);
        assert!((0..23).all(|step| batch(&before, step) == batch(&after, step)));
        assert_ne!(batch(&before, 24), batch(&after, 24));
        let mut seen = BTreeSet::new();
        for step in 0..200 {
            for (slot, draw) in (0..).zip(batch(&after, step)) {
                assert!(seen.insert((draw.source, draw.epoch, draw.index)), "{policy:?}, step {step}: {draw:?} again");
                assert_eq!(after.find(draw.source, draw.index, draw.epoch), Some((Step(step), slot)));
            }
        }
        for source in 0..3 {
            let of = |epoch| seen.iter().filter(|(s, e, _)| (*s, *e) == (source, Epoch(epoch))).count() as u64;
            (0..)
                .take_while(|epoch| of(epoch + 1) > 0)
                .for_each(|e| assert_eq!(of(e), after.spec().sources[source].samples));
        }
        // A resume from before the change forgets it.
        let again = after.with_weights_from(Step(23), Some(vec![3, 1, 0])).unwrap();
        assert_eq!(again.spec().segments.len(), 2);
        assert_eq!(batch(&again, 23).len(), 16);
        assert_eq!(after.with_weights_from(Step(0), None).unwrap().spec().segments, [Segment::first(None)]);
    }
}

#[test]
fn new_weights_repeat_no_sample_of_an_epoch_with_the_tail_dropped() {
    for policy in POLICIES {
        for first in [1, 4, 7, 12, 33] {
            let before = order(&[100, 37, 61], 16, policy, Tail::Drop, None);
            let after = before.with_weights_from(Step(first), Some(vec![1, 2, 2])).unwrap();
            let after = after.with_weights_from(Step(first + 9), None).unwrap();
            let mut seen = BTreeSet::new();
            for step in 0..100 {
                let draws = batch(&after, step);
                assert!(draws.iter().all(|draw| seen.insert((draw.source, draw.epoch, draw.index))), "step {step}");
            }
        }
    }
}

#[test]
fn a_reserve_is_another_sample_each_time_and_there_is_an_end() {
    let order = order(&[100, 2, 1], 1, Policy::OneSource, Tail::Drop, None);
    let reserves = |source, epoch, index| -> Vec<u64> {
        (0..)
            .map_while(|attempt| order.reserve(source, Epoch(epoch), SampleIndex(index), attempt))
            .map(|s| s.0)
            .collect()
    };
    for index in 0..100 {
        let tried = reserves(0, 4, index);
        let different: BTreeSet<u64> = tried.iter().copied().chain([index]).collect();
        assert_eq!((tried.len(), different.len()), (16, 17), "sample {index}: {tried:?}");
    }
    assert_ne!(reserves(0, 4, 7), reserves(0, 5, 7));
    assert_eq!((reserves(1, 0, 0), reserves(1, 0, 1), reserves(2, 0, 0)), (vec![1], vec![0], vec![]));
}

#[test]
fn mixes_that_cannot_be_are_refused_with_name_and_numbers() {
    let check = |spec: OrderSpec, expected: &str| {
        let error = Order::new(spec).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    for tail in TAILS {
        check(
            spec(&[100, 9], 10, Policy::OneSource, tail, None),
            "a step takes 10 samples of data set `s1`, which has 9",
        );
        check(
            spec(&[9, 4], 14, Policy::Mixed, tail, None),
            "a global batch of 14 is more than all data sets have (13)",
        );
        check(
            spec(&[9, 9], 10, Policy::Mixed, tail, Some(vec![1, 99])),
            "takes 10 samples of data set `s1`, which has 9",
        );
        check(spec(&[90, 90], 10, Policy::Mixed, tail, Some(vec![0, 0])), "has a weight above 0");
    }
    // Enough in a mixed batch, or left out.
    order(&[100, 9], 10, Policy::Mixed, Tail::Drop, None);
    order(&[100, 9], 10, Policy::OneSource, Tail::Drop, Some(vec![1, 0]));
    let mut segments = spec(&[100, 90], 10, Policy::Mixed, Tail::Drop, None);
    segments.sources[1].shuffle = Shuffle::Blocks { block: 0, window: 5 };
    check(segments.clone(), "data set `s1` is shuffled in blocks or windows of 0");
    segments.sources[1].shuffle = Shuffle::Full;
    segments.segments.push(Segment { first: Step(0), weights: None, starts: vec![0, 0] });
    check(segments.clone(), "segment 1 of the order, from step 0: it must begin after");
    segments.segments[1] = Segment { first: Step(3), weights: Some(vec![1]), starts: vec![0, 0] };
    check(segments.clone(), "one weight a data set");
    segments.segments[1] = Segment { first: Step(3), weights: None, starts: vec![] };
    check(segments, "every other one start a data set");
}

#[test]
fn steps_of_epochs_are_rounded_as_the_tail_says() {
    let steps = |policy, tail| order(&[25, 19], 10, policy, tail, None).steps_of(3);
    assert_eq!(steps(Policy::OneSource, Tail::Drop), 9);
    assert_eq!(steps(Policy::Mixed, Tail::Drop), 12);
    assert_eq!(steps(Policy::Mixed, Tail::Carry), 14);
}

#[test]
fn an_order_takes_less_than_a_kilobyte_a_data_set() {
    use crate::sampler::{leg, rates};
    let each =
        size_of::<OrderSource>() + 48 + leg::STREAM_BYTES + rates::SHARE_BYTES + size_of::<u32>() + size_of::<u64>();
    assert!(each + size_of::<Order>() + size_of::<leg::Leg>() < 1024, "{each} bytes");
    assert!(size_of::<Part>() < 1024, "{} bytes while a step's slots are drawn", size_of::<Part>());
}
