//! What comes of a rank that lives and is at fault: stuck, out of memory, unlike the others.

use super::{Command, Event, JobState, Life, fixture as f, recover, transition};
use common::{
    cause::{Because, Diverged, MemoryJudge, OutOfMemory},
    ids::{Generation, Rank, Step},
    pulse::{Doing, ProcessState, Pulse},
    status::FailureCause,
};
use std::time::Duration;

/// The place's process has been stopped for 12 s.
fn stopped(slot: u32) -> Event {
    let pulse = Pulse {
        generation: Generation(2),
        step: Step(4),
        doing: Doing::Computing,
        operations: vec![],
        waiting: false,
        quiet: Some(Duration::from_secs(12)),
        slow_step: Some(Duration::from_secs(1)),
        process: ProcessState::Stopped,
    };
    Event::Pulse { place: f::place(slot), pulse: Box::new(pulse) }
}

/// Two ranks that train, at step 3.
fn training() -> JobState {
    f::after(f::training(2), [f::progress(2, 0, 1, 3), f::progress(2, 1, 1, 3)])
}

fn short(commands: &[Command]) -> Vec<String> {
    let short = |command: &Command| {
        let (kind, trainer) = match command {
            Command::EndStuck { trainer, .. } => ("end stuck", trainer),
            Command::StartTrainer { trainer, .. } => ("start", trainer),
            Command::EndTrainer { trainer, .. } => ("end", trainer),
            other => ("other", other.trainer()),
        };
        format!("{kind} {} g{}", &trainer.place.worker.as_str()[1..], trainer.generation)
    };
    commands.iter().map(short).collect()
}

fn check(state: &JobState, event: Event, expected: &[&str]) -> JobState {
    let (next, commands) = transition(state, event, f::NOW);
    assert_eq!(short(&commands), expected);
    next
}

#[test]
fn a_stuck_rank_is_ended_once_and_replaced_when_it_is_gone() {
    let state = check(&training(), stopped(1), &["end stuck 1 g2"]);
    let state = check(&state, stopped(1), &[]);
    assert!(short(&recover(&state)).contains(&"end stuck 1 g2".to_owned()), "a restarted coordinator says it again");
    // Its worker was restarted meanwhile and knows the signal alone.
    let state = check(&state, f::ended(2, 1, f::signal(9)), &["start 0 g3", "start 1 g3"]);
    let FailureCause::Hung(stuck) = &state.failures[0].cause else { panic!("{:?}", state.failures) };
    assert_eq!((stuck.because.clone(), stuck.step, state.failures[0].rank), (Because::Stopped, Step(4), Some(Rank(1))));
    assert!(state.membership.unwrap().members.iter().all(|member| member.stuck.is_none() && member.pulse.is_none()));
}

#[test]
fn nobody_is_stuck_where_the_recipe_says_so_or_while_trainers_start_or_end() {
    let mut state = training();
    state.recipe.faults.detect.hang_floor_s = 0;
    check(&state, stopped(1), &[]);
    check(&f::starting(2), stopped(1), &[]);
    let ending = f::after(training(), [f::ended(2, 0, f::said("no file"))]);
    assert!(matches!(ending.life, Life::Ending { .. }));
    check(&ending, stopped(1), &[]);
}

#[test]
fn a_rank_that_ran_out_of_memory_is_replaced_once_and_not_again_before_it_got_further() {
    let memory = || {
        Some(FailureCause::OutOfMemory(OutOfMemory {
            said_by: MemoryJudge::Machine,
            peak_bytes: Some(1 << 30),
            limit_bytes: None,
        }))
    };
    let state = check(&training(), f::ended(2, 1, memory()), &["start 0 g3", "start 1 g3"]);
    let state = f::after(state, [f::ready(3, 0), f::ready(3, 1)]);
    let state = check(&state, f::ended(3, 1, memory()), &["end 0 g3"]);
    assert!(matches!(state.life, Life::Ending { .. }));
}

#[test]
fn a_minority_is_replaced_and_without_a_majority_the_training_goes_back_to_its_checkpoint() {
    let diverged = |ranks: &[u32]| {
        let ranks = ranks.iter().copied().map(Rank).collect();
        Some(FailureCause::Diverged(Diverged { step: Step(3), ranks, digests: vec![] }))
    };
    check(&training(), f::ended(2, 1, diverged(&[1])), &["start 0 g3", "start 1 g3"]);
    let state = f::after(training(), [f::written(2, 0, 2), f::written(2, 1, 2)]);
    let committed = Event::CheckpointCommitted { generation: Generation(2), step: Step(2) };
    let state = check(&f::after(state, [committed]), f::ended(2, 1, diverged(&[])), &["end 0 g2"]);
    let state = check(&state, f::ended(2, 0, diverged(&[])), &[]);
    assert!(matches!(state.life, Life::BackOff { .. }));
    assert_eq!(state.stages[1].checkpoint, Some(Step(2)));
}
