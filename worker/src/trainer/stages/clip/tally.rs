//! How many samples of a data set were broken in an epoch, over all ranks: the same on every rank, whatever their number,
//! because within an epoch a sample comes once. After a resume within an epoch it counts from there.

use crate::data::BrokenSample;
use common::ids::Epoch;

/// Counts by data set.
#[derive(Debug)]
pub(super) struct Tally(Vec<Count>);

#[derive(Debug, Clone)]
struct Count {
    epoch: Epoch,
    /// Of the epoch, and of the one after it, into which a step may reach.
    broken: [u64; 2],
}

impl Tally {
    /// Of so many data sets.
    pub(super) fn new(sources: usize) -> Self {
        Self(vec![Count { epoch: Epoch(0), broken: [0; 2] }; sources])
    }

    /// What one rank has to add in a step: two numbers a data set. `epochs` is the step's, see `Order::epochs`.
    pub(super) fn mine(epochs: &[Option<Epoch>], broken: &[BrokenSample]) -> Vec<i64> {
        let mut numbers = vec![0; 2 * epochs.len()];
        for BrokenSample { wanted, .. } in broken {
            let source = wanted.source as usize;
            numbers[2 * source + usize::from(Some(wanted.epoch) != epochs[source])] += 1;
        }
        numbers
    }

    /// Adds the sum over ranks.
    pub(super) fn add(&mut self, epochs: &[Option<Epoch>], all: &[i64]) {
        for ((count, epoch), numbers) in self.0.iter_mut().zip(epochs).zip(all.as_chunks::<2>().0) {
            let Some(epoch) = *epoch else { continue };
            if epoch.0 == count.epoch.0 + 1 {
                count.broken = [count.broken[1], 0];
            } else if epoch != count.epoch {
                count.broken = [0; 2];
            }
            count.epoch = epoch;
            count.broken.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number.cast_unsigned());
        }
    }

    /// The most that a data set had in one of the epochs at hand, by data set.
    pub(super) fn most(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|count| count.broken[0].max(count.broken[1]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{SampleRequest, SkipReason};
    use common::{
        ids::{SampleIndex, Step, WorldSize},
        sampler::{Order, OrderSpec, Policy, Tail, local_slots},
    };

    fn broken(source: u32, index: SampleIndex, epoch: Epoch) -> BrokenSample {
        let (key, detail) = (String::new(), String::new());
        BrokenSample { wanted: SampleRequest { source, index, epoch }, key, reason: SkipReason::BrokenImage, detail }
    }

    /// Every seventh sample is broken; the most of each data set in an epoch, after each step.
    fn run(order: &Order, world: u32) -> Vec<Vec<u64>> {
        let (mut tally, world) = (Tally::new(2), WorldSize(world));
        let step = |step: u64| {
            let epochs = order.epochs(Step(step));
            let mut all = vec![0; 4];
            for rank in world.ranks() {
                let draws = order.draws(Step(step), local_slots(rank, world, order.spec().global_batch));
                let bad: Vec<BrokenSample> = draws
                    .filter(|draw| draw.index.0 % 7 == 0)
                    .map(|draw| broken(draw.source as u32, draw.index, draw.epoch))
                    .collect();
                all.iter_mut().zip(Tally::mine(&epochs, &bad)).for_each(|(sum, number)| *sum += number);
            }
            tally.add(&epochs, &all);
            tally.most().collect()
        };
        (0..200).map(step).collect()
    }

    #[test]
    fn any_number_of_ranks_counts_each_broken_sample_once_an_epoch() {
        for (policy, tail) in
            [(Policy::Mixed, Tail::Carry), (Policy::OneSource, Tail::Carry), (Policy::Mixed, Tail::Drop)]
        {
            let spec = OrderSpec { policy, tail, ..OrderSpec::plain(3, &[("a", 140), ("b", 70)], 30) };
            let order = Order::new(spec).unwrap();
            let one = run(&order, 1);
            // 20 of 140 and 10 of 70 are; with the tail dropped some of them may never come up.
            let most = |source: usize| one.iter().map(|counts| counts[source]).max().unwrap();
            assert!(most(0) <= 20 && most(1) <= 10, "{policy:?} {tail:?}: {} {}", most(0), most(1));
            if tail == Tail::Carry {
                assert_eq!((most(0), most(1)), (20, 10), "{policy:?}");
            }
            for world in [2, 3, 7] {
                assert_eq!(run(&order, world), one, "{policy:?} {tail:?} {world}");
            }
        }
    }
}
