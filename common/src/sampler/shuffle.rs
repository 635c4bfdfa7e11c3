//! How a data set's samples are shuffled in an epoch: all of them, or block by block, for storage that wants long reads.
//!
//! With blocks, the samples are cut into blocks of b neighbours, which are permuted and laid end to end; this row of all
//! samples is cut into windows of m, and each window is permuted in itself. A reader then needs the blocks of one window
//! at a time. Nothing need divide anything: the last block may be short and stands wherever the permutation puts it (what
//! comes after it moves up), and the last window takes what is left over, so it has m to 2m − 1 samples.

use super::{Permutation, Purpose, rng::key};
use crate::ids::{Epoch, SampleIndex};
use serde::{Deserialize, Serialize};

/// How a data set is shuffled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shuffle {
    /// Every sample may stand anywhere.
    #[default]
    Full,
    /// Neighbours stay within a window.
    #[serde(untagged)]
    Blocks {
        /// Samples that lie together and are read together.
        block: u64,
        /// Samples that are shuffled among each other.
        window: u64,
    },
}

impl Shuffle {
    /// Whether it is the full one.
    pub fn is_full(&self) -> bool {
        *self == Shuffle::Full
    }
}

/// The order of one data set in one epoch.
#[derive(Debug, Clone, Copy)]
pub struct Shuffled(Kind);

#[derive(Debug, Clone, Copy)]
enum Kind {
    Full(Permutation),
    Blocks(Blocks),
}

#[derive(Debug, Clone, Copy)]
struct Blocks {
    samples: u64,
    block: u64,
    window: u64,
    /// How many windows there are; the last one is the longest.
    windows: u64,
    /// The order of the blocks.
    order: Permutation,
    /// Where in the row the last block ends, which may be short.
    short_end: u64,
    /// How many samples it lacks.
    lacking: u64,
    /// The key of all windows.
    key: [u32; 2],
    /// The window that was used last, and its order.
    last: (u64, Permutation),
}

impl Shuffled {
    /// The order of `samples` samples.
    ///
    /// # Panics
    /// When a block or a window has no samples.
    pub fn new(shuffle: Shuffle, seed: u64, source: u32, epoch: Epoch, samples: u64) -> Self {
        match shuffle {
            Shuffle::Full => Self(Kind::Full(Permutation::new(seed, Purpose::Order, source, epoch, samples))),
            Shuffle::Blocks { block, window } => {
                assert!(block > 0 && window > 0, "blocks of {block} and windows of {window} samples");
                let count = samples.div_ceil(block);
                let order = Permutation::new(seed, Purpose::Blocks, source, epoch, count);
                let lacking = count * block - samples;
                let short_end = if count == 0 { 0 } else { (order.position_of(count - 1) + 1) * block - lacking };
                let windows = (samples / window).max(1);
                let key = key(seed, Purpose::Window, source, epoch);
                let mut blocks = Blocks {
                    samples,
                    block,
                    window,
                    windows,
                    order,
                    short_end,
                    lacking,
                    key,
                    last: (0, Permutation::keyed(key, 0, 0)),
                };
                blocks.last.1 = blocks.permutation(0);
                Self(Kind::Blocks(blocks))
            }
        }
    }

    /// Which sample stands at a place of the epoch. It remembers the window, so that a run of places costs one key each.
    ///
    /// # Panics
    /// When there is no such place.
    pub fn at(&mut self, place: u64) -> SampleIndex {
        SampleIndex(match &mut self.0 {
            Kind::Full(permutation) => permutation.at(place),
            Kind::Blocks(blocks) => blocks.at(place),
        })
    }

    /// Where a sample stands in the epoch.
    ///
    /// # Panics
    /// When there is no such sample.
    pub fn place_of(&mut self, sample: SampleIndex) -> u64 {
        match &mut self.0 {
            Kind::Full(permutation) => permutation.position_of(sample.0),
            Kind::Blocks(blocks) => blocks.place_of(sample.0),
        }
    }
}

impl Blocks {
    fn at(&mut self, place: u64) -> u64 {
        assert!(place < self.samples, "place {place} of {} samples", self.samples);
        let window = (place / self.window).min(self.windows - 1);
        let start = window * self.window;
        let row = start + self.use_window(window).at(place - start);
        // Behind the short block the row goes on as if that block were whole.
        let row = if row < self.short_end { row } else { row + self.lacking };
        self.order.at(row / self.block) * self.block + row % self.block
    }

    fn place_of(&mut self, sample: u64) -> u64 {
        assert!(sample < self.samples, "sample {sample} of {} samples", self.samples);
        let row = self.order.position_of(sample / self.block) * self.block + sample % self.block;
        let row = if row < self.short_end { row } else { row - self.lacking };
        let window = (row / self.window).min(self.windows - 1);
        let start = window * self.window;
        start + self.use_window(window).position_of(row - start)
    }

    fn use_window(&mut self, window: u64) -> &Permutation {
        if self.last.0 != window {
            self.last = (window, self.permutation(window));
        }
        &self.last.1
    }

    fn permutation(&self, window: u64) -> Permutation {
        let last = window + 1 == self.windows;
        let size = if last { self.samples - window * self.window } else { self.window };
        Permutation::keyed(self.key, window, size)
    }
}

#[cfg(test)]
#[path = "tests/shuffle.rs"]
mod tests;
