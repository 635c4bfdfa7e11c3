//! Which patches of an image a step sees (patch dropout: Li et al. 2023, "Scaling Language-Image Pre-training via Masking").

use super::{CounterRng, Purpose};
use crate::ids::{Epoch, SampleIndex};

/// How many of `patches` stay when a share `dropout` of them is dropped: at least one.
pub fn kept_patches(patches: u32, dropout: f64) -> u32 {
    ((f64::from(patches) * (1.0 - dropout)).round() as u32).clamp(1, patches.max(1))
}

/// Draws `kept` of the patches 0..`patches`, evenly and without repeats, in ascending order.
///
/// # Panics
/// When there are not so many.
pub fn choose_patches(
    seed: u64,
    source: u32,
    sample: SampleIndex,
    epoch: Epoch,
    (kept, patches): (u32, u32),
) -> Vec<u32> {
    assert!(kept <= patches, "{kept} of {patches} patches");
    let mut rng = CounterRng::new(seed, Purpose::Patches, source, sample, epoch);
    // The beginning of a Fisher-Yates shuffle.
    let mut all: Vec<u32> = (0..patches).collect();
    for place in 0..kept {
        let other = u64::from(place) + rng.below(u64::from(patches - place));
        all.swap(place as usize, other as usize);
    }
    all.truncate(kept as usize);
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_patch_is_drawn_equally_often_and_none_twice() {
        let mut counts = [0; 9];
        for sample in 0..9_000 {
            let drawn = choose_patches(4, 0, SampleIndex(sample), Epoch(1), (4, 9));
            assert!(drawn.len() == 4 && drawn.is_sorted_by(|a, b| a < b), "{drawn:?}");
            drawn.iter().for_each(|patch| counts[*patch as usize] += 1);
        }
        assert!(counts.iter().all(|count| (3_800..4_200).contains(count)), "{counts:?}");
        assert_eq!(choose_patches(4, 0, SampleIndex(1), Epoch(1), (3, 3)), [0, 1, 2]);
    }

    #[test]
    fn the_share_is_rounded_and_one_always_stays() {
        assert_eq!([(64, 0.5), (64, 0.0), (49, 0.25), (4, 0.99)].map(|(n, p)| kept_patches(n, p)), [32, 64, 37, 1]);
    }
}
