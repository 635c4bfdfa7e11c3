//! Random numbers without a state: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

use crate::ids::{Epoch, SampleIndex};

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// One block of Philox4x32-10.
pub(super) fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
    }
    counter
}

pub(super) fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// What a number is drawn for; numbers of different purposes have nothing to do with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// The order of a data set's samples.
    Order = 1,
    /// Where a mix begins in its round of the data sets.
    Mix = 2,
    /// Which caption of an image.
    Caption = 3,
    /// Where an image is cropped.
    Crop = 4,
    /// Which patches of an image are seen.
    Patches = 5,
    /// What stands in for samples that fail at run time.
    Reserve = 6,
    /// The order of a mixed batch's slots; the step takes the epoch's place in the key.
    Slots = 7,
    /// The order of a data set's blocks.
    Blocks = 8,
    /// The order within a window of blocks.
    Window = 9,
    /// Which two captions of a sample are a pair, and whose caption is its negative.
    Pair = 10,
    /// Which tokens of a block are masked, and what stands in their place.
    Mask = 11,
    /// What a chunk's dropout leaves out; the step takes the epoch's place in the key, the chunk's first slot the sample's.
    Dropout = 12,
}

/// The key of all numbers of a purpose, a data set and an epoch.
pub(super) fn key(seed: u64, purpose: Purpose, source: u32, epoch: Epoch) -> [u32; 2] {
    let [low, high] = halves(epoch.0);
    let block = philox([purpose as u32, source, low, high], halves(seed));
    [block[0], block[1]]
}

/// The numbers that belong to one sample of one epoch, for one purpose.
#[derive(Debug, Clone)]
pub struct CounterRng {
    key: [u32; 2],
    index: [u32; 2],
    block: u32,
    left: Vec<u32>,
}

impl CounterRng {
    /// Begins at the first number.
    pub fn new(seed: u64, purpose: Purpose, source: u32, index: SampleIndex, epoch: Epoch) -> Self {
        Self { key: key(seed, purpose, source, epoch), index: halves(index.0), block: 0, left: Vec::with_capacity(4) }
    }

    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.left.is_empty() {
            let block = philox([self.index[0], self.index[1], self.block, 0], self.key);
            self.block += 1;
            self.left.extend(block.iter().rev());
        }
        self.left.pop().expect("a block was just added")
    }

    /// The next 64 bits; the first word is the lower half.
    pub fn next_u64(&mut self) -> u64 {
        let low = self.next_u32();
        u64::from(self.next_u32()) << 32 | u64::from(low)
    }

    /// Evenly from [0, 1): 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Evenly from 0 to `bound` - 1, without bias.
    ///
    /// # Panics
    /// When `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "there is no number below 0");
        // Numbers of the last, incomplete run of `bound` are drawn again.
        let whole = u64::MAX - (u64::MAX % bound + 1) % bound;
        loop {
            let drawn = self.next_u64();
            if drawn <= whole {
                return drawn % bound;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_known_answers_of_random123() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox(pi, [0xa409_3822, 0x299f_31d0]), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn numbers_depend_on_all_that_they_are_keyed_by() {
        let first = |seed, purpose, source, index, epoch| {
            CounterRng::new(seed, purpose, source, SampleIndex(index), Epoch(epoch)).next_u64()
        };
        let base = first(1, Purpose::Crop, 0, 5, 0);
        assert_eq!(base, first(1, Purpose::Crop, 0, 5, 0));
        for other in [
            first(2, Purpose::Crop, 0, 5, 0),
            first(1, Purpose::Caption, 0, 5, 0),
            first(1, Purpose::Crop, 1, 5, 0),
            first(1, Purpose::Crop, 0, 6, 0),
            first(1, Purpose::Crop, 0, 5, 1),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn uniform_is_even_and_below_stays_below() {
        let mut rng = CounterRng::new(0, Purpose::Crop, 0, SampleIndex(0), Epoch(0));
        let mean = (0..20_000).map(|_| rng.uniform()).sum::<f64>() / 20_000.0;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        let mut counts = [0; 3];
        (0..30_000).for_each(|_| counts[rng.below(3) as usize] += 1);
        assert!(counts.iter().all(|count| (9_600..10_400).contains(count)), "{counts:?}");
        assert!(rng.below(u64::MAX) < u64::MAX);
    }
}
