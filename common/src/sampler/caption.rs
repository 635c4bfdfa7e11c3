//! Which of an image's captions a step sees.

use super::{CounterRng, Purpose};
use crate::ids::{Epoch, SampleIndex};

/// Draws a caption column: column i with probability `weights[i]` / sum.
///
/// # Panics
/// When no weight is above 0.
pub fn choose_caption(seed: u64, source: u32, sample: SampleIndex, epoch: Epoch, weights: &[u32]) -> usize {
    let sum: u64 = weights.iter().copied().map(u64::from).sum();
    let mut drawn = CounterRng::new(seed, Purpose::Caption, source, sample, epoch).below(sum);
    for (column, weight) in weights.iter().enumerate() {
        match drawn.checked_sub(u64::from(*weight)) {
            Some(left) => drawn = left,
            None => return column,
        }
    }
    unreachable!("what was drawn is below the sum of the weights")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_drawn_by_weight_and_never_one_of_weight_0() {
        let mut counts = [0; 3];
        for sample in 0..30_000 {
            counts[choose_caption(4, 0, SampleIndex(sample), Epoch(2), &[2, 0, 1])] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!((19_500..20_500).contains(&counts[0]), "{counts:?}");
    }
}
