//! The bijection: at the sizes where such networks break, both ways, and how even it is.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn permutation(seed: u64, epoch: u64, samples: u64) -> Permutation {
    Permutation::new(seed, Purpose::Order, 0, Epoch(epoch), samples)
}

fn order(seed: u64, epoch: u64, samples: u64) -> Vec<u64> {
    let permutation = permutation(seed, epoch, samples);
    (0..samples).map(|position| permutation.at(position)).collect()
}

fn check_bijection(seed: u64, epoch: u64, samples: u64) {
    let order = order(seed, epoch, samples);
    let permutation = permutation(seed, epoch, samples);
    let mut seen = vec![false; order.len()];
    for (position, sample) in (0..).zip(order) {
        assert!(!std::mem::replace(&mut seen[sample as usize], true), "{sample} of {samples} stands twice");
        assert_eq!(permutation.position_of(sample), position, "{samples} samples");
    }
}

proptest! {
    #[test]
    fn every_sample_stands_somewhere_and_only_once(seed: u64, epoch in 0u64..1000, samples in 1u64..3000) {
        check_bijection(seed, epoch, samples);
    }
}

#[test]
fn powers_of_two_and_their_neighbours_do_not_collide() {
    for samples in [1, 2, 3] {
        (0..50).for_each(|seed| check_bijection(seed, 0, samples));
    }
    for bits in 2..15 {
        for samples in (1 << bits) - 1..=(1 << bits) + 2 {
            (0..3).for_each(|seed| check_bijection(seed, 1, samples));
        }
    }
}

#[test]
fn large_sets_do_not_collide_in_windows_and_go_both_ways() {
    for bits in 15..63 {
        for samples in (1u64 << bits) - 1..=(1 << bits) + 2 {
            let permutation = permutation(5, 2, samples);
            let mut seen = BTreeSet::new();
            for position in [0, samples / 2, samples - 200].into_iter().flat_map(|start| start..start + 200) {
                let sample = permutation.at(position);
                assert!(sample < samples && seen.insert(sample), "{samples} samples, position {position}");
                assert_eq!(permutation.position_of(sample), position, "{samples} samples");
            }
        }
    }
    let all = permutation(5, 2, u64::MAX);
    assert_eq!(all.position_of(all.at(u64::MAX - 1)), u64::MAX - 1);
}

#[test]
fn epochs_and_seeds_differ() {
    assert_ne!(order(0, 0, 100), order(0, 1, 100));
    assert_ne!(order(0, 0, 100), order(1, 0, 100));
}

#[test]
fn fewer_than_two_walks_are_expected_at_any_size() {
    for samples in [5, 65, 1025, (1 << 31) + 1, 1_237_983_779] {
        let permutation = permutation(1, 0, samples);
        let mut walks = 0;
        for position in (0..10_000).map(|position| position % samples) {
            let mut value = permutation.encrypt(position);
            walks += 1;
            while value >= samples {
                value = permutation.encrypt(value);
                walks += 1;
            }
        }
        assert!(walks < 20_500, "{samples} samples: {walks} walks for 10,000 positions");
    }
}

#[test]
fn positions_are_even_over_epochs() {
    // How often each of 8 samples stands first, over 8,000 epochs: 1,000 each, standard deviation 30.
    let mut first = [0i32; 8];
    for epoch in 0..8000 {
        first[permutation(9, epoch, 8).at(0) as usize] += 1;
    }
    assert!(first.iter().all(|count| (count - 1000).abs() < 150), "{first:?}");
}

#[test]
fn every_order_of_a_few_samples_is_as_likely_as_any_other() {
    // χ² over all n! orders: n! − 1 degrees of freedom, 5 standard deviations allowed.
    for (samples, orders) in [(3, 6), (5, 120), (6, 720)] {
        let mut counts: BTreeMap<Vec<u64>, f64> = BTreeMap::new();
        let (epochs, expected) = (orders * 100, 100.0);
        (0..epochs).for_each(|epoch| *counts.entry(order(3, epoch, samples)).or_default() += 1.0);
        let chi2: f64 = counts.values().map(|count| (count - expected).powi(2) / expected).sum::<f64>()
            + (orders as f64 - counts.len() as f64) * expected;
        let freedom = orders as f64 - 1.0;
        let sigmas = (chi2 - freedom) / (2.0 * freedom).sqrt();
        assert!(sigmas.abs() < 5.0, "{samples} samples: χ² is {chi2:.0} at {freedom} degrees of freedom");
    }
}

#[test]
fn large_orders_have_no_trace_of_the_places() {
    // Fixed points, correlation of neighbours, and χ² of place × sample on a 64 × 64 grid (63² degrees of freedom).
    let (samples, seeds) = (1_000_003u64, 6);
    let mut fixed = 0;
    for seed in 0..seeds {
        let order = order(seed, 0, samples);
        fixed += (0..samples).zip(&order).filter(|(place, sample)| place == *sample).count();
        let mean = (samples - 1) as f64 / 2.0;
        let product = |pair: &[u64]| (pair[0] as f64 - mean) * (pair[1] as f64 - mean);
        let variance = (samples as f64).powi(2) / 12.0;
        let sigmas = order.windows(2).map(product).sum::<f64>() / variance / (samples as f64).sqrt();
        assert!(sigmas.abs() < 4.5, "seed {seed}: neighbours are correlated, {sigmas:.1} standard deviations");
        let mut grid = vec![0f64; 64 * 64];
        let cell = |value: u64| (value * 64 / samples) as usize;
        (0..samples).zip(&order).for_each(|(place, sample)| grid[cell(place) * 64 + cell(*sample)] += 1.0);
        let expected = samples as f64 / 4096.0;
        let chi2: f64 = grid.iter().map(|count| (count - expected).powi(2) / expected).sum();
        let sigmas = (chi2 - 3969.0) / (2.0f64 * 3969.0).sqrt();
        assert!(sigmas.abs() < 4.5, "seed {seed}: χ² on the grid is {chi2:.0}, {sigmas:.1} standard deviations");
    }
    assert!((0..=18).contains(&fixed), "{fixed} fixed points in {seeds} orders, one each is expected");
}
