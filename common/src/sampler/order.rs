//! Which sample each slot of each step has.
//!
//! Everything is a closed form of the step: nothing is kept from one step to the next, and a resume at any step costs what
//! a step costs. `rates` says how many samples each data set gives to a step and gave before it, `leg` in which epoch and at
//! which places they are, `shuffle` which samples stand there; a mixed batch's rows are then shuffled over its slots.

use super::{
    Draw, Draws, OrderError, OrderSpec, Permutation, Policy, Purpose, Segment, Shuffle, Shuffled, Tail,
    draws::Part,
    leg::{Leg, Lot},
};
use crate::ids::{Epoch, SampleIndex, Step};
use std::ops::Range;

/// How many samples may stand in for one that fails.
pub const RESERVES: u64 = 16;

/// A slot that holds the sample of an earlier slot once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repeat {
    /// The later slot.
    pub slot: u64,
    /// The earlier one.
    pub of: u64,
}

/// The order of a stage.
#[derive(Debug, Clone)]
pub struct Order {
    spec: OrderSpec,
    legs: Vec<Leg>,
}

impl Order {
    /// The order of a mix.
    ///
    /// # Errors
    /// When a data set is too small for its share of a global batch, no weight is above 0, or the segments are not those
    /// of this mix.
    ///
    /// # Panics
    /// When the global batch is 0.
    pub fn new(spec: OrderSpec) -> Result<Self, OrderError> {
        assert!(spec.global_batch > 0, "a global batch has at least one pair");
        for source in &spec.sources {
            if matches!(source.shuffle, Shuffle::Blocks { block: 0, .. } | Shuffle::Blocks { window: 0, .. }) {
                return Err(OrderError::EmptyWindow(source.name.clone()));
            }
        }
        segments_fit(&spec)?;
        let legs = spec.segments.iter().map(|segment| Leg::new(&spec, segment)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { spec, legs })
    }

    /// What the order depends on.
    pub fn spec(&self) -> &OrderSpec {
        &self.spec
    }

    /// How many steps go `epochs` times through the data: with `drop` what is left over is left out each time, with
    /// `carry` it is rounded up once. With weights, an epoch is as many samples as the data sets have together.
    pub fn steps_of(&self, epochs: u64) -> u64 {
        let (batch, sizes) = (self.spec.global_batch, self.spec.sources.iter().map(|source| source.samples));
        match (self.spec.tail, self.spec.policy) {
            (Tail::Drop, Policy::OneSource) => epochs * sizes.map(|samples| samples / batch).sum::<u64>(),
            (Tail::Drop, Policy::Mixed) => epochs * (sizes.sum::<u64>() / batch),
            (Tail::Carry, _) => (epochs * sizes.sum::<u64>()).div_ceil(batch),
        }
    }

    /// The sample of a slot of a step. For more than one slot, [`Order::draws`] is far cheaper.
    ///
    /// # Panics
    /// When `slot` is not below the global batch.
    pub fn draw(&self, step: Step, slot: u64) -> Draw {
        self.draws(step, slot..slot + 1).next().expect("one slot was asked for")
    }

    /// The samples of a stretch of a step's slots.
    ///
    /// # Panics
    /// When a slot is not below the global batch.
    pub fn draws(&self, step: Step, slots: Range<u64>) -> Draws {
        let batch = self.spec.global_batch;
        assert!(slots.end <= batch, "slots {slots:?} of a global batch of {batch}");
        Draws { parts: self.parts(step), slots_to_rows: self.slots_to_rows(step), slots }
    }

    /// The epoch of the first sample that a step takes of each data set, absent where it takes none; its others may be of the
    /// epoch after that.
    pub fn epochs(&self, step: Step) -> Vec<Option<Epoch>> {
        let mut epochs = vec![None; self.spec.sources.len()];
        self.leg(step).lots(step).for_each(|lot| epochs[lot.source] = Some(lot.epoch));
        epochs
    }

    /// The slots of a step whose sample an earlier slot of it has too, in ascending order: none with the tail dropped,
    /// and with `carry` only where a data set's epoch ends within the step. (An image that two data sets share, or
    /// that stands in for a broken one, is not known here.)
    pub fn repeats(&self, step: Step) -> Vec<Repeat> {
        let mut found = Vec::new();
        for mut part in self.parts(step) {
            let (Lot { place, count, .. }, Some(mut next)) = (part.lot, part.next) else { continue };
            // Rows before `border` are of one epoch, the others of the next: search the shorter half in the longer.
            let border = part.samples - place;
            let pair = |row: u64, other: u64| [part.first_row + row, part.first_row + other];
            if border < count - border {
                found.extend((0..border).filter_map(|row| {
                    let other = border + next.place_of(part.now.at(place + row));
                    (other < count).then(|| pair(row, other))
                }));
            } else {
                found.extend((border..count).filter_map(|row| {
                    let other = part.now.place_of(next.at(row - border));
                    (other >= place).then(|| pair(row, other - place))
                }));
            }
        }
        let rows = self.slots_to_rows(step);
        let slot = |row: u64| rows.map_or(row, |rows| rows.position_of(row));
        let mut repeats: Vec<Repeat> = found
            .into_iter()
            .map(|pair| pair.map(slot))
            .map(|[a, b]| Repeat { slot: a.max(b), of: a.min(b) })
            .collect();
        repeats.sort_unstable();
        repeats
    }

    /// The step and slot in which a sample of a data set comes up in an epoch; absent when it does not: it was left
    /// over, the data set has a weight of 0, or the epoch is not reached.
    ///
    /// # Panics
    /// When there is no such data set or sample.
    pub fn find(&self, source: usize, sample: SampleIndex, epoch: Epoch) -> Option<(Step, u64)> {
        let place = self.shuffled(source, epoch).place_of(sample);
        let samples = self.spec.sources[source].samples;
        self.legs.iter().enumerate().find_map(|(number, leg)| {
            let step = leg.step_of(source, epoch, place)?;
            if self.legs.get(number + 1).is_some_and(|next| step >= next.first) {
                return None;
            }
            let mut first_row = 0;
            let lot = leg.lots(step).find(|lot| {
                first_row += lot.count;
                lot.source == source
            })?;
            first_row -= lot.count;
            let place = place + (epoch.0.checked_sub(lot.epoch.0)?) * samples;
            let row = place.checked_sub(lot.place).filter(|row| *row < lot.count)? + first_row;
            Some((step, self.slots_to_rows(step).map_or(row, |rows| rows.position_of(row))))
        })
    }

    /// What stands in for a sample that failed, at the given attempt, from 0: the samples behind it in a permutation that
    /// serves nothing else, never itself; absent when there is none left or [`RESERVES`] were tried. It depends on the
    /// arguments alone, never on what else was replaced.
    ///
    /// # Panics
    /// When there is no such data set or sample.
    pub fn reserve(&self, source: usize, epoch: Epoch, index: SampleIndex, attempt: u64) -> Option<SampleIndex> {
        let samples = self.spec.sources[source].samples;
        if attempt >= RESERVES.min(samples - 1) {
            return None;
        }
        let reserve = Permutation::new(self.spec.seed, Purpose::Reserve, number(source), epoch, samples);
        Some(SampleIndex(reserve.at((reserve.position_of(index.0) + 1 + attempt) % samples)))
    }

    /// The order with other weights from a step on, as a new segment in which every data set goes on where it stands;
    /// what comes before the step is unchanged, what was planned behind it is dropped.
    ///
    /// # Errors
    /// As [`Order::new`].
    pub fn with_weights_from(&self, first: Step, weights: Option<Vec<u32>>) -> Result<Self, OrderError> {
        let mut spec = self.spec.clone();
        spec.segments.retain(|segment| segment.first < first);
        if spec.segments.is_empty() {
            spec.segments.push(Segment::first(weights));
        } else {
            let starts = self.legs[spec.segments.len() - 1].positions(first);
            spec.segments.push(Segment { first, weights, starts });
        }
        Self::new(spec)
    }

    fn parts(&self, step: Step) -> Vec<Part> {
        let mut first_row = 0;
        let part = |lot: Lot| {
            let samples = self.spec.sources[lot.source].samples;
            let reaches = lot.place + lot.count > samples;
            let part = Part {
                lot,
                first_row,
                samples,
                now: self.shuffled(lot.source, lot.epoch),
                next: reaches.then(|| self.shuffled(lot.source, Epoch(lot.epoch.0 + 1))),
            };
            first_row += lot.count;
            part
        };
        self.leg(step).lots(step).map(part).collect()
    }

    fn leg(&self, step: Step) -> &Leg {
        &self.legs[self.legs.partition_point(|leg| leg.first <= step) - 1]
    }

    fn shuffled(&self, source: usize, epoch: Epoch) -> Shuffled {
        let of = &self.spec.sources[source];
        Shuffled::new(of.shuffle, self.spec.seed, number(source), epoch, of.samples)
    }

    fn slots_to_rows(&self, step: Step) -> Option<Permutation> {
        let shuffle = || Permutation::new(self.spec.seed, Purpose::Slots, 0, Epoch(step.0), self.spec.global_batch);
        (self.spec.policy == Policy::Mixed).then(shuffle)
    }
}

fn number(source: usize) -> u32 {
    u32::try_from(source).expect("a mix has fewer than 2^32 data sets")
}

fn segments_fit(spec: &OrderSpec) -> Result<(), OrderError> {
    let wrong = |number: usize, reason| {
        let first = spec.segments.get(number).map_or(Step(0), |segment| segment.first);
        Err(OrderError::Segment { number, first, reason })
    };
    if spec.segments.first().is_none_or(|segment| segment.first != Step(0)) {
        return wrong(0, "the first segment must begin at step 0");
    }
    for (number, segment) in spec.segments.iter().enumerate() {
        if number > 0 && segment.first <= spec.segments[number - 1].first {
            return wrong(number, "it must begin after the segment before it");
        }
        if segment.weights.as_ref().is_some_and(|weights| weights.len() != spec.sources.len()) {
            return wrong(number, "it must have one weight a data set");
        }
        if segment.starts.len() != if number == 0 { 0 } else { spec.sources.len() } {
            return wrong(number, "the first one has no starts, every other one start a data set");
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "tests/golden.rs"]
mod golden;
#[cfg(test)]
#[path = "tests/order.rs"]
mod tests;
