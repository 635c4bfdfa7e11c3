//! A segment of an order, ready to compute with: where each data set stands at each of its steps.
//!
//! A data set's stream is the sequence of places that steps take from it, counted in y over all its epochs; epoch e begins
//! at y = e·L. With `carry` L is the data set's size and every sample belongs to the epoch of its own y. With `drop` L is so
//! much smaller that a batch which begins in an epoch ends in it: the batch belongs to the epoch of its first y, and
//! what it takes beyond L is not taken again from the epoch after it.

use super::{OrderError, OrderSpec, Policy, Segment, Tail, rates::Rates};
use crate::ids::{Epoch, Step};

/// What one data set gives to one step: `count` places from `place` on, in `epoch`. Those at or beyond the data
/// set's size are places of the next epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lot {
    pub source: usize,
    pub epoch: Epoch,
    pub place: u64,
    pub count: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Leg {
    pub first: Step,
    rates: Rates,
    /// Samples of one unit of the rates.
    unit: u64,
    streams: Vec<Stream>,
}

#[derive(Debug, Clone, Copy)]
struct Stream {
    samples: u64,
    /// L.
    length: u64,
    /// Where it stands at the leg's first step.
    epoch: u64,
    place: u64,
}

impl Leg {
    pub(super) fn new(spec: &OrderSpec, segment: &Segment) -> Result<Self, OrderError> {
        let (units, unit) = match spec.policy {
            Policy::OneSource => (1, spec.global_batch),
            Policy::Mixed => (spec.global_batch, 1),
        };
        let sizes: Vec<u64> = spec.sources.iter().map(|source| source.samples).collect();
        let total: u64 = sizes.iter().sum();
        if total < spec.global_batch {
            return Err(OrderError::NoBatch { global_batch: spec.global_batch, samples: total });
        }
        let (rates, epoch_units) = rates(spec, segment, &sizes, units)?;
        let stream = |source: usize| {
            let samples = sizes[source];
            let most = rates.most(source) * unit;
            if most > samples {
                return Err(too_few(spec, source, most));
            }
            let length = match (spec.tail, spec.policy, &epoch_units) {
                _ if most == 0 => samples,
                (Tail::Carry, _, _) => samples,
                (Tail::Drop, Policy::OneSource, _) => samples / unit * unit,
                (Tail::Drop, Policy::Mixed, Some(units)) if segment.starts.is_empty() => units[source],
                (Tail::Drop, Policy::Mixed, _) => samples - most + 1,
            };
            let length = length.max(1);
            let start = segment.starts.get(source).copied().unwrap_or(0);
            let (epoch, place) = (start / samples.max(1), start % samples.max(1));
            // What lies beyond this leg's length was another leg's.
            let (epoch, place) = if place < length { (epoch, place) } else { (epoch + 1, 0) };
            Ok(Stream { samples, length, epoch, place })
        };
        let streams = (0..sizes.len()).map(stream).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { first: segment.first, rates, unit, streams })
    }

    /// What each data set gives to a step of this leg, in the order of the data sets and without those that give nothing.
    pub(super) fn lots(&self, step: Step) -> impl Iterator<Item = Lot> + '_ {
        let relative = step.0 - self.first.0;
        (0..self.streams.len()).filter_map(move |source| {
            let count = self.rates.count(relative, source) * self.unit;
            (count > 0).then(|| {
                let (epoch, place) = self.stands_at(relative, source);
                Lot { source, epoch: Epoch(epoch), place, count }
            })
        })
    }

    /// Where the data sets stand before a step, as [`Segment::starts`] has it.
    pub(super) fn positions(&self, step: Step) -> Vec<u64> {
        let position = |(source, stream): (usize, &Stream)| {
            let (epoch, place) = self.stands_at(step.0 - self.first.0, source);
            epoch * stream.samples + place
        };
        self.streams.iter().enumerate().map(position).collect()
    }

    /// The step of this leg, were it endless, that takes a place of an epoch of a data set.
    pub(super) fn step_of(&self, source: usize, epoch: Epoch, place: u64) -> Option<Step> {
        let stream = self.streams[source];
        let y = epoch.0.checked_sub(stream.epoch)?.checked_mul(stream.length)?.checked_add(place)?;
        let unit = y.checked_sub(stream.place)? / self.unit;
        Some(Step(self.first.0 + self.rates.step_of(unit, source)?))
    }

    fn stands_at(&self, relative: u64, source: usize) -> (u64, u64) {
        let stream = self.streams[source];
        let y = stream.place + self.rates.before(relative, source) * self.unit;
        (stream.epoch + y / stream.length, y % stream.length)
    }
}

/// The composition of a segment's steps. Without weights and with the tail dropped a period is an epoch; for a mixed one,
/// how many samples of each data set an epoch has comes along.
fn rates(
    spec: &OrderSpec,
    segment: &Segment,
    sizes: &[u64],
    units: u64,
) -> Result<(Rates, Option<Vec<u64>>), OrderError> {
    let weighted = |weights: &[u64]| (Rates::weighted(spec.seed, weights, units), None);
    Ok(match (&segment.weights, spec.tail, spec.policy) {
        (Some(weights), _, _) if weights.iter().all(|weight| *weight == 0) => return Err(OrderError::NoWeight),
        (Some(weights), _, _) => weighted(&weights.iter().copied().map(u64::from).collect::<Vec<_>>()),
        (None, Tail::Carry, _) => weighted(sizes),
        (None, Tail::Drop, Policy::OneSource) => {
            let batches: Vec<u64> = sizes.iter().map(|samples| samples / spec.global_batch).collect();
            if let Some(few) = batches.iter().position(|batches| *batches == 0) {
                return Err(too_few(spec, few, spec.global_batch));
            }
            weighted(&batches)
        }
        (None, Tail::Drop, Policy::Mixed) => {
            let steps = sizes.iter().sum::<u64>() / spec.global_batch;
            let shares = apportion(sizes, steps * spec.global_batch);
            (Rates::exact(spec.seed, &shares, steps), Some(shares))
        }
    })
}

fn too_few(spec: &OrderSpec, source: usize, needed: u64) -> OrderError {
    let source = &spec.sources[source];
    OrderError::TooFewSamples { name: source.name.clone(), samples: source.samples, needed }
}

/// `seats` shared in proportion to `sizes`, by largest remainders: no share is above its size when `seats` is not above
/// their sum.
fn apportion(sizes: &[u64], seats: u64) -> Vec<u64> {
    let total: u128 = sizes.iter().copied().map(u128::from).sum();
    let exact = |size: &u64| u128::from(*size) * u128::from(seats);
    let mut shares: Vec<u64> =
        sizes.iter().map(|size| u64::try_from(exact(size) / total).expect("no more than the seats")).collect();
    let mut by_remainder: Vec<usize> = (0..sizes.len()).collect();
    by_remainder.sort_by_key(|source| std::cmp::Reverse(exact(&sizes[*source]) % total));
    let left = seats - shares.iter().sum::<u64>();
    by_remainder.iter().zip(0..left).for_each(|(source, _)| shares[*source] += 1);
    shares
}

/// What a data set takes of a leg's memory.
#[cfg(test)]
pub(super) const STREAM_BYTES: usize = size_of::<Stream>();
