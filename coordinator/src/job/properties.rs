//! Random histories: nothing panics, and no two generations ever live at once.

use super::{
    Command, Event, LivingTrainer, Resume, decode, encode,
    fixture::{self as f, said, signal},
    transition,
};
use crate::rendezvous::Place;
use common::{
    ids::{Generation, Rank, Step, WorldSize},
    time::Timestamp,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn event() -> impl Strategy<Value = (Event, u64)> {
    let (generation, slot, step) = (0..6u64, 0..3u32, 0..5u64);
    let any = (generation, slot, step, 0..4u8, any::<bool>());
    (0..18u8, any, 0..40_000u64).prop_map(|(kind, (generation, slot, step, cause, flag), wait)| {
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
            15 | 16 => {
                let (generation, rank, step) = (Generation(generation), Rank(slot), flag.then_some(Step(step)));
                Event::PeersLost { generation, rank, step, message: "gone".into() }
            }
            17 => f::trouble(generation, slot, step, flag),
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
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_history_panics_or_has_two_generations_at_once(
        history in prop::collection::vec(event(), 1..120), training in any::<bool>(), elastic in any::<bool>(),
    ) {
        let state = if training { f::training(2) } else { f::submitted(2) };
        let mut state = if elastic { f::elastic(state, 1, 3, 5, 1) } else { state };
        let mut now = f::NOW;
        // The newest generation that was ordered on each place and not ended since, as far as the coordinator can know.
        let mut living: BTreeMap<Place, Generation> = BTreeMap::new();
        for (event, wait) in history {
            now = Timestamp(now.0 + wait);
            let before = state.clone();
            let (next, commands) = transition(&state, event, now);
            prop_assert!(next.generation >= before.generation, "generations only grow");
            // Who is lost with its machine takes no part any more, and is ended when the machine is back.
            let taking_part = |place: &Place| next.membership.iter().flat_map(|m| m.everyone()).any(|m| m.place == *place);
            living.retain(|place, _| taking_part(place));
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
                // Whoever takes part was told of the new one.
                prop_assert!(living.values().all(|generation| *generation == next.generation), "{:?}", living);
            }
            let (least, most) = next.ranks();
            if let (true, Some(membership)) = (next.generation > before.generation, &next.membership) {
                let world = membership.world().0;
                prop_assert!(world <= most && (world >= least || membership.stop), "{} ranks", world);
                let places: BTreeSet<&Place> = membership.everyone().map(|member| &member.place).collect();
                prop_assert_eq!(places.len(), membership.everyone().count(), "one trainer a place");
            }
            prop_assert_eq!(decode(&encode(&next)).unwrap(), next.clone());
            state = next;
        }
    }
}
