//! Places of samples that tests/golden/sampler/make_golden.py computed, which shares no code with this.

use super::*;
use crate::sampler::OrderSource;
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    name: String,
    seed: u64,
    global_batch: u64,
    policy: Policy,
    tail: Tail,
    sources: Vec<(u64, Shuffle)>,
    segments: Vec<Segment>,
    /// Per segment, where the data sets stand at its start.
    starts: Vec<Vec<u64>>,
    /// Step, slot, data set, sample, epoch.
    draws: Vec<(u64, u64, usize, u64, u64)>,
    /// Step, slot, earlier slot.
    repeats: Vec<(u64, u64, u64)>,
    /// Data set, epoch, sample, attempt, what stands in.
    reserves: Vec<(usize, u64, u64, u64, u64)>,
}

impl Case {
    fn order(&self) -> Order {
        let source = |(number, (samples, shuffle)): (usize, &(u64, Shuffle))| OrderSource {
            name: format!("s{number}"),
            samples: *samples,
            shuffle: *shuffle,
        };
        let spec = OrderSpec {
            seed: self.seed,
            global_batch: self.global_batch,
            sources: self.sources.iter().enumerate().map(source).collect(),
            policy: self.policy,
            tail: self.tail,
            segments: vec![self.segments[0].clone()],
        };
        let mut order = Order::new(spec).unwrap();
        for segment in &self.segments[1..] {
            order = order.with_weights_from(segment.first, segment.weights.clone()).unwrap();
        }
        order
    }
}

#[test]
fn the_order_is_that_of_the_golden_file() {
    let golden = include_str!("../../../../tests/golden/sampler/order.json");
    let cases: Vec<Case> = serde_json::from_str(golden).unwrap();
    assert_eq!(cases.len(), 7);
    for case in cases {
        let (order, name) = (case.order(), &case.name);
        for (segment, starts) in order.spec().segments.iter().zip(&case.starts).skip(1) {
            assert_eq!(&segment.starts, starts, "{name}, from step {}", segment.first);
        }
        for (step, slot, source, index, epoch) in case.draws {
            let expected = Draw { source, index: SampleIndex(index), epoch: Epoch(epoch) };
            assert_eq!(order.draw(Step(step), slot), expected, "{name}, step {step}, slot {slot}");
            assert_eq!(order.find(source, SampleIndex(index), Epoch(epoch)), Some((Step(step), slot)), "{name}");
        }
        let repeats =
            (0..120).flat_map(|step| order.repeats(Step(step)).into_iter().map(move |r| (step, r.slot, r.of)));
        assert_eq!(repeats.take(20).collect::<Vec<_>>(), case.repeats, "{name}");
        for (source, epoch, index, attempt, expected) in case.reserves {
            let reserve = order.reserve(source, Epoch(epoch), SampleIndex(index), attempt);
            assert_eq!(reserve, Some(SampleIndex(expected)), "{name}");
        }
    }
}
