//! A shuffle of 0..n that is computed, not stored, and its inverse: a Feistel network over ⌈log2 n⌉ bits, walked until
//! it lands below n (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
//!
//! An odd number of bits makes unequal halves, so that the domain is never twice as large as n and fewer than two walks
//! are expected. The round function mixes a half with a round key by Stafford's variant 13 of MurmurHash3's finaliser
//! (the one of splitmix64): Philox, from which the keys come, would cost five times as much and shuffle no better.

use super::rng::{Purpose, halves, key, philox};
use crate::ids::Epoch;

/// Rounds of a pass; even, since a pair of rounds changes both halves.
const ROUNDS: usize = 6;
/// Sets of at most this many bits get four passes: a half of one to four bits is changed by few functions, and after six
/// rounds some orders of five samples are twice as likely as others.
const SMALL: u32 = 8;
/// Added to the keys from pass to pass: 2^64 divided by the golden ratio.
const NEXT_PASS: u64 = 0x9E37_79B9_7F4A_7C15;

/// A bijection of 0..n.
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    keys: [u64; ROUNDS],
    samples: u64,
    high_bits: u32,
    low_bits: u32,
    passes: u64,
}

impl Permutation {
    /// The order of `samples` things of data set `source` in an epoch.
    pub fn new(seed: u64, purpose: Purpose, source: u32, epoch: Epoch, samples: u64) -> Self {
        Self::keyed(key(seed, purpose, source, epoch), 0, samples)
    }

    /// The order of part `part` of what `key` is for.
    pub(super) fn keyed(key: [u32; 2], part: u64, samples: u64) -> Self {
        let bits = u64::BITS - samples.saturating_sub(1).leading_zeros();
        let [low, high] = halves(part);
        let mut keys = [0; ROUNDS];
        for (number, pair) in (0..).zip(keys.chunks_mut(2)) {
            let block = philox([number, 0, low, high], key);
            pair[0] = u64::from(block[1]) << 32 | u64::from(block[0]);
            pair[1] = u64::from(block[3]) << 32 | u64::from(block[2]);
        }
        Self {
            keys,
            samples,
            high_bits: bits.div_ceil(2),
            low_bits: bits / 2,
            passes: if bits <= SMALL { 4 } else { 1 },
        }
    }

    /// n.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// What stands at a position. Expected O(1): fewer than 2 walks.
    ///
    /// # Panics
    /// When `position` is not below n.
    pub fn at(&self, position: u64) -> u64 {
        assert!(position < self.samples, "position {position} of {} samples", self.samples);
        let mut value = self.encrypt(position);
        while value >= self.samples {
            value = self.encrypt(value);
        }
        value
    }

    /// Where something stands: `position_of(at(p)) == p`. As dear as [`Permutation::at`].
    ///
    /// # Panics
    /// When `sample` is not below n.
    pub fn position_of(&self, sample: u64) -> u64 {
        assert!(sample < self.samples, "sample {sample} of {} samples", self.samples);
        let mut value = self.decrypt(sample);
        while value >= self.samples {
            value = self.decrypt(value);
        }
        value
    }

    fn encrypt(&self, value: u64) -> u64 {
        let (high_mask, low_mask) = self.masks();
        let (mut high, mut low) = (value >> self.low_bits, value & low_mask);
        for pass in 0..self.passes {
            let shift = pass.wrapping_mul(NEXT_PASS);
            for keys in self.keys.chunks_exact(2) {
                high ^= mix(low ^ keys[0].wrapping_add(shift)) & high_mask;
                low ^= mix(high ^ keys[1].wrapping_add(shift)) & low_mask;
            }
        }
        high << self.low_bits | low
    }

    fn decrypt(&self, value: u64) -> u64 {
        let (high_mask, low_mask) = self.masks();
        let (mut high, mut low) = (value >> self.low_bits, value & low_mask);
        for pass in (0..self.passes).rev() {
            let shift = pass.wrapping_mul(NEXT_PASS);
            for keys in self.keys.chunks_exact(2).rev() {
                low ^= mix(high ^ keys[1].wrapping_add(shift)) & low_mask;
                high ^= mix(low ^ keys[0].wrapping_add(shift)) & high_mask;
            }
        }
        high << self.low_bits | low
    }

    /// Halves have at most 32 bits.
    fn masks(&self) -> (u64, u64) {
        ((1 << self.high_bits) - 1, (1 << self.low_bits) - 1)
    }
}

/// Stafford's variant 13.
fn mix(mut value: u64) -> u64 {
    value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ value >> 31
}

#[cfg(test)]
#[path = "tests/permutation.rs"]
mod tests;
