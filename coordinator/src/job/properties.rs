//! Random histories: nothing panics, and no two generations ever live at once.

use super::{
    Command, Event, LivingTrainer, Resume, decode, encode,
    fixture::{self as f, said, signal},
    transition,
};
use crate::rendezvous::Place;
use common::{
    ids::{Generation, Step, WorldSize},
    time::Timestamp,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn event() -> impl Strategy<Value = (Event, u64)> {
    let (generation, slot, step) = (0..6u64, 0..3u32, 0..5u64);
    let any = (generation, slot, step, 0..4u8, any::<bool>());
    (0..15u8, any, 0..40_000u64).prop_map(|(kind, (generation, slot, step, cause, flag), wait)| {
        let cause = [None, signal(9), signal(15), said("bad")][usize::from(cause)].clone();
        let worker = f::place(slot).worker;
        let event = match kind {
            0 | 1 => Event::Tick,
            2 | 3 => Event::Capacity { free: f::places(slot + 1) },
            4..=6 => f::ready(generation, slot),
            7 => f::progress(generation, slot, (step % 3) as usize, step),
            8 => f::written(generation, slot, step),
            9 => Event::CheckpointCommitted { generation: Generation(generation), step: Step(step) },
            10 => f::finished(generation, slot, flag),
            11 => f::ended(generation, slot, cause),
            12 if flag => Event::WorkerLost { worker },
            12 => {
                let slot = f::place(slot).slot;
                let living =
                    vec![LivingTrainer { generation: Generation(generation), slot, pid: 1, peer: "p:1".into() }];
                Event::WorkerRegistered { worker, living: if step > 2 { living } else { Vec::new() } }
            }
            13 if step == 0 => Event::Stop,
            13 if step == 1 => Event::Abandoned,
            13 => Event::CheckpointFound { step: Step(step) },
            _ => Event::Resume(Resume {
                step: flag.then_some(Step(step)),
                world_size: Some(WorldSize(slot)),
                ..Resume::default()
            }),
        };
        (event, wait)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_history_panics_or_has_two_generations_at_once(history in prop::collection::vec(event(), 1..120)) {
        let mut state = f::submitted(2);
        let mut now = f::NOW;
        // The newest generation that was ordered on each place and not ended since, as far as the coordinator can know.
        let mut living: BTreeMap<Place, Generation> = BTreeMap::new();
        for (event, wait) in history {
            now = Timestamp(now.0 + wait);
            let before = state.clone();
            let (next, commands) = transition(&state, event, now);
            prop_assert!(next.generation >= before.generation, "generations only grow");
            for member in next.membership.iter().flat_map(|m| &m.members).filter(|member| member.ended) {
                living.remove(&member.place);
            }
            for command in &commands {
                let trainer = command.trainer();
                prop_assert!(trainer.generation <= next.generation);
                if let Command::StartTrainer { .. } | Command::SendPlan { .. } = command {
                    prop_assert_eq!(trainer.generation, next.generation, "only the newest generation is given work");
                }
                if let Command::StartTrainer { .. } = command {
                    living.insert(trainer.place.clone(), trainer.generation);
                }
            }
            if next.generation > before.generation {
                // Whoever lived took part in the generation before, and takes part in the new one on the same place.
                prop_assert!(living.values().all(|generation| *generation == next.generation), "{:?}", living);
            }
            prop_assert_eq!(decode(&encode(&next)).unwrap(), next.clone());
            state = next;
        }
    }
}
