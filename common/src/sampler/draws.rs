//! The samples of a stretch of a step's slots.

use super::{Permutation, Shuffled, leg::Lot};
use crate::ids::{Epoch, SampleIndex};
use std::ops::Range;

/// The place of one sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// Which data set of the mix, from 0.
    pub source: usize,
    /// Which of its samples.
    pub index: SampleIndex,
    /// How often the data set was gone through before.
    pub epoch: Epoch,
}

/// One data set's part of a step, with the orders of its epochs at hand.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub lot: Lot,
    /// The number of its first row among the rows of all parts.
    pub first_row: u64,
    /// The data set's samples.
    pub samples: u64,
    pub now: Shuffled,
    /// The order of the next epoch, where the part reaches into it.
    pub next: Option<Shuffled>,
}

impl Part {
    /// The sample of a row of this part, from 0.
    pub(super) fn draw(&mut self, row: u64) -> Draw {
        let place = self.lot.place + row;
        let (epoch, index) = match &mut self.next {
            Some(next) if place >= self.samples => (Epoch(self.lot.epoch.0 + 1), next.at(place - self.samples)),
            _ => (self.lot.epoch, self.now.at(place)),
        };
        Draw { source: self.lot.source, index, epoch }
    }
}

/// Iterates over the samples of slots; see [`super::Order::draws`]. Keys are computed once, not once a sample.
#[derive(Debug, Clone)]
pub struct Draws {
    pub(super) parts: Vec<Part>,
    /// From slots to rows; absent where the two are the same.
    pub(super) slots_to_rows: Option<Permutation>,
    pub(super) slots: Range<u64>,
}

impl Iterator for Draws {
    type Item = Draw;

    fn next(&mut self) -> Option<Draw> {
        let slot = self.slots.next()?;
        let row = self.slots_to_rows.map_or(slot, |rows| rows.at(slot));
        let part = self.parts.partition_point(|part| part.first_row <= row) - 1;
        let part = &mut self.parts[part];
        Some(part.draw(row - part.first_row))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.slots.end - self.slots.start) as usize;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Draws {}
