//! The composition of steps against counting step by step.

use super::*;
use proptest::prelude::*;

proptest! {
    #[test]
    fn every_step_is_full_and_what_was_before_is_the_sum(seed: u64, weights in prop::collection::vec(0u64..60, 1..9),
                                                         units in 1u64..200) {
        let sum: u64 = weights.iter().sum();
        prop_assume!(sum > 0);
        let rates = Rates::weighted(seed, &weights, units);
        let mut before = vec![0; weights.len()];
        for step in 0..rates.period + 50 {
            let mut all = 0;
            for (source, weight) in weights.iter().enumerate() {
                prop_assert_eq!(rates.before(step, source), before[source]);
                let count = rates.count(step, source);
                prop_assert!(count == units * weight / sum || count == (units * weight).div_ceil(sum));
                prop_assert!(count <= rates.most(source));
                (before[source]..before[source] + count)
                    .for_each(|unit| assert_eq!(rates.step_of(unit, source), Some(step)));
                before[source] += count;
                all += count;
            }
            prop_assert_eq!(all, units);
            if step + 1 == rates.period {
                let exact: Vec<u64> = weights.iter().map(|weight| units * weight * rates.period / sum).collect();
                prop_assert_eq!(&before, &exact);
            }
        }
    }
}

#[test]
fn no_prefix_strays_from_the_weights() {
    // In samples, of a mix of 32,768 a step; the bounds are measured, not proved (they grow with the logarithm of T).
    for weights in [vec![1, 1, 1], vec![70, 20, 9, 1], vec![2_873_538, 10_000_225, 1_801_350], vec![1, 1_000_000]] {
        let rates = Rates::weighted(11, &weights, 32_768);
        let sum: u64 = weights.iter().sum();
        for (source, weight) in weights.iter().enumerate() {
            for step in (0..20_000).chain([1 << 30, 1 << 40]) {
                let exact = step as f64 * 32_768.0 * *weight as f64 / sum as f64;
                let strays = (rates.before(step, source) as f64 - exact).abs();
                assert!(
                    strays < if step < 20_000 { 4.0 } else { 16.0 },
                    "{weights:?}: set {source} is {strays:.2} samples off at step {step}"
                );
            }
        }
    }
}

#[test]
fn a_weight_of_0_gives_nothing_and_a_set_alone_gives_all() {
    let rates = Rates::weighted(0, &[0, 5], 1);
    assert!((0..10).all(|step| rates.count(step, 0) == 0 && rates.count(step, 1) == 1));
    assert_eq!((rates.step_of(0, 0), rates.step_of(7, 1)), (None, Some(7)));
}
