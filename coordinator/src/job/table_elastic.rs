//! Machines that come and go: one event, the whole list of commands, and where the job is then.

use super::{
    Event, JobState, Life, LivingTrainer, Resume, encode,
    fixture::{self as f, NOW, signal},
    table::{check, check_at, later, phase},
    transition,
};
use common::{
    ids::{Generation, Rank, Step, WorldSize},
    status::{FailureCause, Phase, WaitReason},
};

fn lost(slot: u32) -> Event {
    Event::WorkerLost { worker: f::place(slot).worker }
}

/// Places of these workers.
fn free(slots: &[u32]) -> Event {
    Event::Capacity { free: slots.iter().copied().map(f::place).collect() }
}

/// A rank that lost its peers, with step 7 in memory.
fn apart(generation: u64, rank: u32) -> Event {
    let message = "rank 1 is gone during all_reduce number 3".to_owned();
    Event::PeersLost { generation: Generation(generation), rank: Rank(rank), step: Some(Step(7)), message }
}

fn back(slot: u32, generation: Option<u64>) -> Event {
    let living = generation.map(|generation| LivingTrainer {
        generation: Generation(generation),
        slot: f::place(slot).slot,
        pid: 100 + slot,
        peer: f::peer(slot),
    });
    Event::WorkerRegistered { worker: f::place(slot).worker, living: living.into_iter().collect() }
}

/// Generation 2 trains with ranks 0 to 2, and has come to step 7.
fn three() -> JobState {
    f::after(f::training(3), [f::progress(2, 0, 1, 7)])
}

/// Rank 1 is lost with its machine; the others hold step 7.
fn without_one(state: JobState) -> JobState {
    let state = check(&state, lost(1), &[]);
    assert_eq!(state.life, Life::Running, "there is no evidence yet");
    let state = check(&state, apart(2, 0), &[]);
    assert!(matches!(state.life, Life::Regrouping { missing: 1, .. }), "{:?}", state.life);
    state
}

fn generation_3(state: JobState, slots: &[u32]) -> JobState {
    f::after(state, slots.iter().map(|slot| f::ready(3, *slot)))
}

#[test]
fn a_silent_worker_whose_ranks_go_on_is_left_alone() {
    let state = check(&three(), lost(1), &[]);
    // Every step needs all ranks: the training that moves is the evidence that they live.
    let state = transition(&state, f::progress(2, 2, 1, 8), later(4)).0;
    let state = check_at(later(5), &state, Event::Tick, &[]);
    assert_eq!((&state.life, state.failures.len()), (&Life::Running, 0));
    assert!(state.events.iter().any(|event| event.kind == "silent"));
    let state = transition(&state, back(1, Some(2)), later(6)).0;
    let state = check_at(later(60), &state, Event::Tick, &[]);
    assert_eq!((&state.life, state.failures.len()), (&Life::Running, 0));
}

#[test]
fn one_whose_training_stands_still_is_lost() {
    let state = check(&three(), lost(1), &[]);
    let state = check_at(later(2), &state, Event::Tick, &[]);
    assert_eq!(state.life, Life::Running);
    let state = check_at(later(3), &state, Event::Tick, &[]);
    let reason = WaitReason::Regrouping { holding: 2, missing: 1 };
    assert_eq!(phase(&state), Phase::Waiting { reason });
    assert_eq!(state.failures[0].cause, FailureCause::WorkerLost);
}

#[test]
fn when_nobody_is_heard_of_it_may_be_the_coordinator_that_is_out_of_reach() {
    let state = f::after(three(), [lost(0), lost(1), lost(2)]);
    let state = check_at(later(59), &state, Event::Tick, &[]);
    assert_eq!((&state.life, state.failures.len()), (&Life::Running, 0));
    let state = check_at(later(60), &state, Event::Tick, &[]);
    assert!(matches!(state.life, Life::BackOff { .. }), "{:?}", state.life);
}

#[test]
fn a_free_place_takes_the_rank_of_one_that_was_lost_with_its_machine() {
    let state = check(&without_one(three()), free(&[5]), &["start 0 g3", "start 5 g3", "start 2 g3"]);
    assert_eq!((state.counters.failures, state.counters.no_progress), (1, 0));
    let state = generation_3(state, &[0, 2]);
    let plan = |to: &str, rank| format!("plan {to} g3 rank {rank} of 3 stage 1 memory");
    check(&state, f::ready(3, 5), &[&plan("0", 0), &plan("5", 1), &plan("2", 2)]);
}

#[test]
fn a_rigid_job_holds_its_state_until_the_machine_is_back_and_not_for_ever() {
    let state = without_one(three());
    let waiting = check_at(later(500), &state, free(&[]), &[]);
    check_at(later(599), &waiting, free(&[1]), &["start 0 g3", "start 1 g3", "start 2 g3"]);
    let state = check_at(later(600), &waiting, free(&[]), &["end 0 g2", "end 2 g2"]);
    let state = f::after(state, [f::ended(2, 0, None), f::ended(2, 2, signal(15))]);
    assert!(matches!(state.life, Life::Queued { .. }));
    assert_eq!(state.counters.failures, 1);
}

#[test]
fn an_elastic_job_goes_on_with_fewer_after_the_grace() {
    let state = without_one(f::elastic(three(), 2, 3, 10, 0));
    let state = check_at(later(9), &state, free(&[]), &[]);
    let state = check_at(later(10), &state, free(&[]), &["start 0 g3", "start 2 g3"]);
    let state = generation_3(state, &[0]);
    let plans = ["plan 0 g3 rank 0 of 2 stage 1 memory", "plan 2 g3 rank 1 of 2 stage 1 memory"];
    let state = check(&state, f::ready(3, 2), &plans);
    // One more, and they would be fewer than it may run with.
    let state = f::after(state, [f::progress(3, 0, 1, 9), lost(2), apart(3, 0)]);
    let state = check_at(later(60), &state, free(&[]), &[]);
    assert!(matches!(state.life, Life::Regrouping { missing: 1, .. }));
}

#[test]
fn a_place_that_comes_free_is_warmed_up_and_becomes_a_rank_after_the_step() {
    let state = f::elastic(f::training(2), 1, 3, 0, 0);
    let state = check(&state, free(&[4, 5]), &["start 4 g2"]);
    let state = check(&state, free(&[5]), &[]);
    let state = check(&state, f::ready(2, 4), &[]);
    // Only a membership that gets further is changed.
    let state = check(&state, f::progress(2, 1, 1, 7), &["start 0 g3", "start 1 g3", "start 4 g3"]);
    assert_eq!(state.counters.failures, 0);
    let state = generation_3(state, &[0, 1]);
    let plan = |to: &str, rank| format!("plan {to} g3 rank {rank} of 3 stage 1 memory after the step");
    check(&state, f::ready(3, 4), &[&plan("0", 0), &plan("1", 1), &plan("4", 2)]);
}

#[test]
fn a_spare_takes_a_killed_ones_rank_and_one_that_fails_is_not_tried_at_once_again() {
    let state = f::elastic(three(), 3, 3, 0, 1);
    let state = check(&state, free(&[4]), &["start 4 g2"]);
    let state = check(&state, f::ready(2, 4), &[]);
    let state = check(&state, f::ended(2, 1, signal(9)), &["start 0 g3", "start 4 g3", "start 2 g3"]);
    let state = generation_3(state, &[0, 2]);
    let state = f::after(state, [f::ready(3, 4)]);
    // The killed one's place is free: the next spare stands there.
    let state = check(&state, free(&[1]), &["start 1 g3"]);
    let state = check(&state, f::ended(3, 1, signal(11)), &[]);
    assert_eq!((&state.life, state.failures.len()), (&Life::Running, 1));
    let state = check_at(later(59), &state, free(&[1]), &[]);
    check_at(later(60), &state, free(&[1]), &["start 1 g3"]);
}

#[test]
fn spares_end_with_the_job() {
    let state = f::after(f::elastic(f::training(1), 1, 1, 0, 1), [free(&[4]), f::ready(2, 4)]);
    let state = check(&state, f::finished(2, 0, false), &["start 0 g3", "start 4 g3"]);
    let state = f::after(state, [f::ready(3, 0), f::ready(3, 4)]);
    let state = check(&state, f::finished(3, 0, false), &["end 0 g3", "end 4 g3"]);
    let state = check(&state, f::ended(3, 0, None), &[]);
    assert_eq!(phase(&state), Phase::Running);
    assert_eq!(phase(&check(&state, f::ended(3, 4, signal(15)), &[])), Phase::Succeeded);
}

#[test]
fn a_rank_that_was_out_of_reach_and_comes_back_in_time_goes_on_with_the_others() {
    let state = without_one(three());
    let state = check(&state, back(1, Some(2)), &[]);
    check(&state, free(&[]), &["start 0 g3", "start 1 g3", "start 2 g3"]);
    // Too late, it is ended: the others have gone on.
    let state = without_one(f::elastic(three(), 2, 3, 0, 0));
    let state = check(&state, free(&[]), &["start 0 g3", "start 2 g3"]);
    check(&state, back(1, Some(2)), &["end 1 g2"]);
}

#[test]
fn ranks_that_lost_each_other_and_live_begin_again_together() {
    let state = f::after(three(), [apart(2, 0), apart(2, 2)]);
    let state = check_at(later(7), &state, Event::Tick, &[]);
    let state = check_at(later(8), &state, Event::Tick, &["start 0 g3", "start 1 g3", "start 2 g3"]);
    assert_eq!(state.counters.failures, 1);
    assert!(matches!(&state.failures[0].cause, FailureCause::Error { message } if message.contains("all_reduce")));
    // Before the first step it is the network as it is set up.
    let state = f::after(f::training(2), [f::ended(2, 0, signal(9)), f::ready(3, 0), f::ready(3, 1)]);
    assert_eq!(state.life, Life::Running);
    let state = f::after(f::running(2), [apart(1, 0)]);
    check_at(later(8), &state, Event::Tick, &["end 0 g1", "end 1 g1"]);
}

#[test]
fn a_stop_saves_what_is_held() {
    let state = check(&without_one(three()), Event::Stop, &["start 0 g3", "start 2 g3"]);
    let state = generation_3(state, &[0]);
    let state = check(
        &state,
        f::ready(3, 2),
        &["plan 0 g3 rank 0 of 2 stage 1 memory", "plan 2 g3 rank 1 of 2 stage 1 memory", "stop 0 g3", "stop 2 g3"],
    );
    assert_eq!(phase(&state), Phase::Stopping);
    // While a killed one is started again as well.
    let state = f::after(three(), [f::ended(2, 1, signal(9))]);
    let state = check(&state, Event::Stop, &[]);
    let state = generation_3(state, &[0, 1]);
    let state = f::after(state, [f::ready(3, 2)]);
    assert_eq!(phase(&state), Phase::Stopping);
}

#[test]
fn a_stop_saves_what_the_others_hold_though_a_rank_dies_or_all_lose_each_other_meanwhile() {
    let stopping = check(&three(), Event::Stop, &["stop 0 g2", "stop 1 g2", "stop 2 g2"]);
    let killed = check(&stopping, f::ended(2, 1, signal(9)), &["start 0 g3", "start 1 g3", "start 2 g3"]);
    let apart = f::after(stopping.clone(), [apart(2, 0), apart(2, 2)]);
    let apart = check_at(later(8), &apart, Event::Tick, &["start 0 g3", "start 1 g3", "start 2 g3"]);
    // Nobody waits for a machine that is gone.
    let gone = check(&stopping, lost(1), &["start 0 g3", "start 2 g3"]);
    for (state, ranks) in [(killed, 3), (apart, 3), (gone, 2)] {
        let slots: &[u32] = if ranks == 3 { &[0, 1, 2] } else { &[0, 2] };
        let state = generation_3(state, slots);
        assert_eq!(phase(&state), Phase::Stopping, "it stops as soon as it runs");
        assert_eq!(state.membership.as_ref().map(|membership| membership.held), Some(Some(Step(7))));
    }
}

#[test]
fn a_spare_that_is_heard_of_after_the_end_of_the_one_before_it_is_ended() {
    let state = f::after(f::elastic(three(), 3, 3, 0, 1), [f::progress(2, 0, 1, 8)]);
    let state = check(&state, free(&[5]), &["start 5 g2"]);
    // Its machine came back just now, and tells first how the spare before it ended.
    let state = check(&state, f::ended(2, 5, signal(9)), &[]);
    let state = check(&state, f::ready(2, 5), &["end 5 g2"]);
    assert_eq!(state.membership.as_ref().map(|membership| membership.spares.len()), Some(0));
}

#[test]
fn those_who_do_not_start_are_left_behind() {
    let state = f::after(f::elastic(three(), 1, 3, 0, 0), [f::ended(2, 1, signal(9)), f::ready(3, 0), f::ready(3, 2)]);
    let state = check_at(later(180), &state, Event::Tick, &["end 1 g3"]);
    assert!(matches!(state.life, Life::Regrouping { .. }));
    check_at(later(180), &state, free(&[]), &["start 0 g4", "start 2 g4"]);
}

#[test]
fn an_elastic_job_begins_with_fewer_when_the_others_do_not_come() {
    let state = f::elastic(f::submitted(3), 2, 4, 30, 0);
    let state = check(&state, free(&[0, 1]), &[]);
    check_at(later(29), &state, free(&[0, 1]), &[]);
    check_at(later(30), &state, free(&[0]), &[]);
    check_at(later(30), &state, free(&[0, 1]), &["start 0 g1", "start 1 g1"]);
    let most = ["start 0 g1", "start 1 g1", "start 2 g1", "start 3 g1"];
    check(&state, free(&[0, 1, 2, 3, 4]), &most);
    let resumed =
        f::after(state, [Event::Stop, Event::Resume(Resume { world_size: Some(WorldSize(1)), ..Resume::default() })]);
    check_at(NOW, &resumed, free(&[0]), &["start 0 g1"]);
}

#[test]
fn an_hour_in_which_a_machine_is_lost_every_second_leaves_no_more_than_ten_minutes_of_it() {
    let mut state = three();
    state.recipe.faults.max_failures = u32::MAX;
    let mut sizes = Vec::new();
    for second in 0..3600 {
        let (generation, step) = (state.generation.0, 8 + second);
        let gone = (second % 3) as u32;
        let history = [
            vec![lost(gone)],
            (0..3).filter(|slot| *slot != gone).map(|rank| apart(generation, rank)).collect(),
            vec![free(&[gone])],
            (0..3).map(|slot| f::ready(generation + 1, slot)).collect(),
            (0..3).map(|slot| f::progress(generation + 1, slot, 1, step)).collect(),
        ];
        for event in history.into_iter().flatten() {
            state = transition(&state, event, later(second)).0;
        }
        assert_eq!((&state.life, state.generation), (&Life::Running, Generation(generation + 1)), "second {second}");
        sizes.push(encode(&state).len());
    }
    // Numbers of four digits for three.
    assert!(sizes[3599] as f64 <= 1.02 * sizes[600] as f64, "{} bytes, {} before", sizes[3599], sizes[600]);
}

#[test]
fn of_sharded_moments_nobody_is_said_to_keep_what_nobody_keeps() {
    let mut state = three();
    let (known, stage) = (state.membership.as_ref().unwrap().stage, &mut state.recipe);
    let common::recipe::Stage::Clip(clip) = &mut stage.stages[known] else { panic!("the fixture trains `clip`") };
    clip.training.optimizer.sharded = true;
    let state = without_one(state);
    let told = |kind: &str| state.events.iter().rfind(|event| event.kind == kind).unwrap().message.clone();
    assert!(told("recovery").contains("all go on from the newest checkpoint"), "{}", told("recovery"));
    assert_eq!(told("regrouping"), "waits for 1 place");
}
