//! One event, the whole list of commands, and where the job is then.

use super::{
    After, Command, Event, JobState, Life, Refused, Resume, TrainerKey, check as refuses,
    ending::GRACE,
    fixture::{self as f, NOW, signal},
    recover, status, transition,
};
use common::{
    ids::{Generation, Step, WorldSize},
    manifest::Weights,
    status::{FailureCause, Phase, WaitReason},
    time::Timestamp,
};
use std::time::Duration;

/// A command in short: `start 0`, `plan 1 <peer of rank 0>`, … with the slot's number and the generation.
pub(super) fn short(command: &Command) -> String {
    let TrainerKey { generation, place, .. } = command.trainer();
    let to = format!("{} g{generation}", &place.worker.as_str()[1..]);
    match command {
        Command::StartTrainer { .. } => format!("start {to}"),
        Command::SendPlan { plan, .. } => {
            let resume = plan.resume.as_ref().map(|point| format!(" from {}", point.step)).unwrap_or_default();
            let memory = if plan.from_memory { " memory" } else { "" };
            let now = if plan.from_memory && !plan.at_once { " after the step" } else { "" };
            format!("plan {to} rank {} of {} stage {}{resume}{memory}{now}", plan.rank, plan.world(), plan.stage)
        }
        Command::StopTrainer { .. } => format!("stop {to}"),
        Command::EndTrainer { .. } => format!("end {to}"),
        Command::EndStuck { .. } => format!("end stuck {to}"),
        Command::CommitManifest { step, .. } => format!("commit {to} step {step}"),
    }
}

pub(super) fn check_at(now: Timestamp, state: &JobState, event: Event, expected: &[&str]) -> JobState {
    let (next, commands) = transition(state, event, now);
    assert_eq!(commands.iter().map(short).collect::<Vec<_>>(), expected);
    next
}

pub(super) fn check(state: &JobState, event: Event, expected: &[&str]) -> JobState {
    check_at(NOW, state, event, expected)
}

pub(super) fn later(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

pub(super) fn phase(state: &JobState) -> Phase {
    status(state, NOW).phase
}

fn failed(state: &JobState) -> (u8, String) {
    match &state.life {
        Life::Failed { exit_code, message } => (*exit_code, message.clone()),
        life => panic!("it is {life:?}"),
    }
}

#[test]
fn a_job_waits_until_enough_places_are_free() {
    let state = check(&f::submitted(2), Event::Capacity { free: f::places(1) }, &[]);
    let reason = WaitReason::NotEnoughTrainers { needed: 2, free: 1 };
    assert_eq!(phase(&state), Phase::Waiting { reason });
    let state = check(&state, Event::Capacity { free: f::places(3) }, &["start 0 g1", "start 1 g1"]);
    let reason = WaitReason::TrainersStarting { ready: 0, ordered: 2 };
    assert_eq!(phase(&state), Phase::Waiting { reason });
    check(&state, Event::Capacity { free: f::places(3) }, &[]);
}

#[test]
fn plans_go_out_when_the_last_trainer_is_ready_with_all_peers_by_rank() {
    let state = check(&f::starting(2), f::ready(1, 1), &[]);
    let (next, commands) = transition(&state, f::ready(1, 0), NOW);
    assert_eq!(
        commands.iter().map(short).collect::<Vec<_>>(),
        ["plan 0 g1 rank 0 of 2 stage 0", "plan 1 g1 rank 1 of 2 stage 0"]
    );
    let Command::SendPlan { plan, .. } = &commands[1] else { panic!("{commands:?}") };
    assert_eq!(plan.peers, [f::peer(0), f::peer(1)]);
    assert_eq!(phase(&next), Phase::Running);
}

#[test]
fn the_next_stage_begins_with_the_same_trainers_when_all_ranks_finished() {
    let state = check(&f::running(2), f::finished(1, 1, false), &[]);
    let state = check(&state, f::finished(1, 1, false), &[]);
    let state = check(&state, f::finished(1, 0, false), &["start 0 g2", "start 1 g2"]);
    assert!(state.stages[0].done);
    let state = check(&state, f::ready(2, 0), &[]);
    check(&state, f::ready(2, 1), &["plan 0 g2 rank 0 of 2 stage 1", "plan 1 g2 rank 1 of 2 stage 1"]);
}

#[test]
fn after_the_last_stage_all_end_and_then_the_job_has_succeeded() {
    let state = f::after(f::training(1), [f::finished(2, 0, false), f::ready(3, 0)]);
    let state = check(&state, f::finished(3, 0, false), &["end 0 g3"]);
    assert_eq!(phase(&state), Phase::Running);
    let state = check(&state, f::ended(3, 0, None), &[]);
    assert_eq!(phase(&state), Phase::Succeeded);
    assert!(state.failures.is_empty());
    assert_eq!(refuses(&state, &Event::Resume(Resume::default())), Err(Refused::Succeeded(state.job.clone())));
}

#[test]
fn a_checkpoint_is_ordered_once_when_every_share_is_in_and_recorded_when_committed() {
    let state = check(&f::training(2), f::written(2, 1, 4), &[]);
    let (state, commands) = transition(&state, f::written(2, 0, 4), NOW);
    let [Command::CommitManifest { manifest, step, trainer }] = commands.as_slice() else { panic!("{commands:?}") };
    assert_eq!((*step, trainer.place.clone()), (Step(4), f::place(0)));
    let manifest = common::manifest::Manifest::parse(&manifest.to_text(), Step(4)).unwrap();
    assert_eq!((manifest.generation, manifest.stage.as_str()), (Generation(2), "clip"));
    assert_eq!(manifest.recipe_fingerprint, state.fingerprint);
    let state = check(&state, f::written(2, 0, 4), &[]);
    let committed = Event::CheckpointCommitted { generation: Generation(2), step: Step(4) };
    let state = check(&state, committed, &[]);
    assert_eq!(state.stages[1].checkpoint, Some(Step(4)));
    assert!(state.intents.is_empty());
    check(&state, f::written(2, 0, 4), &[]);
}

#[test]
fn reports_of_an_older_generation_change_nothing_and_are_counted() {
    let state = f::training(2);
    let next = check(&state, f::written(1, 0, 4), &[]);
    assert_eq!(next.counters.refused, 1);
    // The first one is told of; of the others nothing is left but their number.
    assert!(!next.only_refused_more_than(&state) && !state.only_refused_more_than(&state));
    let first = next;
    let next = check(&first, f::ended(1, 0, signal(9)), &[]);
    assert_eq!((next.counters.refused, &next.life, next.failures.len()), (2, &Life::Running, 0));
    let later = JobState { updated: NOW.plus(std::time::Duration::from_secs(1)), ..next };
    assert!(later.only_refused_more_than(&first));
}

#[test]
fn a_trainer_that_is_killed_while_its_stage_trains_is_started_again_and_the_others_keep_what_they_hold() {
    let state = f::after(f::training(2), [f::progress(2, 0, 1, 7)]);
    let state = check(&state, f::ended(2, 1, signal(9)), &["start 0 g3", "start 1 g3"]);
    assert_eq!((state.failures.len(), state.counters.failures, state.counters.no_progress), (1, 1, 0));
    assert_eq!(state.membership.as_ref().unwrap().held, Some(Step(7)));
    // The living one answers at once; what it said of the membership before is refused.
    let state = check(&state, f::ready(3, 0), &[]);
    let state = check(&state, f::written(2, 0, 8), &[]);
    let (next, commands) = transition(&state, f::ready(3, 1), NOW);
    assert_eq!(
        commands.iter().map(short).collect::<Vec<_>>(),
        ["plan 0 g3 rank 0 of 2 stage 1 memory", "plan 1 g3 rank 1 of 2 stage 1 memory"]
    );
    assert_eq!(next.life, Life::Running);
    // Another one, before anybody got further: as long as the budget of tries without progress lasts.
    let next = check(&next, f::ended(3, 0, signal(11)), &["start 0 g4", "start 1 g4"]);
    assert_eq!(next.counters.no_progress, 1);
    let next = check(&next, f::ended(4, 1, signal(11)), &["end 0 g4"]);
    assert_eq!(next.failures.len(), 3);
}

#[test]
fn one_that_dies_while_another_is_started_again_is_started_again_as_well() {
    let state = f::after(f::training(3), [f::progress(2, 0, 1, 7), f::ended(2, 1, signal(9))]);
    let state = check(&state, f::ended(3, 2, signal(9)), &["start 0 g4", "start 1 g4", "start 2 g4"]);
    assert_eq!(state.membership.as_ref().unwrap().held, Some(Step(7)));
    // A word of the generation before changes nothing: the process is started again in any case.
    check(&state, f::ended(3, 0, signal(9)), &[]);
}

#[test]
fn what_a_trainer_says_itself_ends_the_generation() {
    let state = f::after(f::training(2), [f::progress(2, 0, 1, 7)]);
    check(&state, f::ended(2, 1, f::said("no space")), &["end 0 g2"]);
    let alone = f::after(f::training(1), [f::progress(2, 0, 1, 7)]);
    assert!(
        matches!(check(&alone, f::ended(2, 0, signal(9)), &[]).life, Life::BackOff { .. }),
        "nobody holds its state"
    );
}

#[test]
fn a_trainer_that_is_killed_in_a_stage_that_trains_nothing_ends_the_others_and_the_job_goes_on_after_a_wait() {
    let state = check(&f::running(2), f::ended(1, 1, signal(9)), &["end 0 g1"]);
    assert_eq!(phase(&state), Phase::Waiting { reason: WaitReason::TrainersEnding { left: 1 } });
    let state = check(&state, f::ended(1, 0, signal(15)), &[]);
    assert_eq!(state.failures.len(), 1, "the one that we ended is no failure");
    assert_eq!(phase(&state), Phase::Waiting { reason: WaitReason::BackOff { until: later(1) } });
    check(&state, Event::Tick, &[]);
    let state = check_at(later(1), &state, Event::Tick, &[]);
    let state = check_at(later(1), &state, Event::Capacity { free: f::places(2) }, &["start 0 g2", "start 1 g2"]);
    let state = f::after(state, [f::ready(2, 0)]);
    check(&state, f::ready(2, 1), &["plan 0 g2 rank 0 of 2 stage 0", "plan 1 g2 rank 1 of 2 stage 0"]);
}

#[test]
fn when_all_trainers_of_a_training_are_killed_it_goes_on_from_its_checkpoint() {
    let committed = Event::CheckpointCommitted { generation: Generation(2), step: Step(4) };
    let state =
        f::after(f::training(2), [f::written(2, 0, 4), f::written(2, 1, 4), committed, f::progress(2, 0, 1, 6)]);
    let state = check(&state, f::ended(2, 1, signal(9)), &["start 0 g3", "start 1 g3"]);
    let state = f::after(state, [f::ready(3, 0)]);
    // The plan names the checkpoint for the case that nobody holds more.
    check(
        &state,
        f::ready(3, 1),
        &["plan 0 g3 rank 0 of 2 stage 1 from 4 memory", "plan 1 g3 rank 1 of 2 stage 1 from 4 memory"],
    );
}

#[test]
fn what_was_killed_is_named_before_what_its_peers_say_of_it() {
    let mut state = f::after(f::training(2), [f::progress(2, 0, 1, 3)]);
    state.recipe.faults.max_failures = 0;
    let state = check(&state, f::ended(2, 0, f::said("lost rank 1")), &["end 1 g2"]);
    let state = check(&state, f::ended(2, 1, signal(9)), &[]);
    let (code, message) = failed(&state);
    assert_eq!(code, 1);
    assert!(message.contains("rank 1") && message.contains("signal 9"), "{message}");
    assert_eq!(state.failures.len(), 2);
}

#[test]
fn an_error_before_any_step_is_the_users_and_is_not_tried_again() {
    let state = check(&f::running(2), f::ended(1, 0, f::said("no such tar: a.tar")), &["end 1 g1"]);
    let (code, message) = failed(&check(&state, f::ended(1, 1, None), &[]));
    assert_eq!(code, 1);
    assert!(message.contains("no such tar: a.tar"), "{message}");
    let state = f::after(f::training(1), [f::progress(2, 0, 1, 1), f::ended(2, 0, f::said("late"))]);
    assert!(matches!(state.life, Life::BackOff { .. }));
}

/// A job that failed so often, each time before a newer checkpoint.
fn failing(max_failures: u32, max_no_progress: u32, times: u64) -> JobState {
    let mut state = f::submitted(1);
    (state.recipe.faults.max_failures, state.recipe.faults.max_no_progress) = (max_failures, max_no_progress);
    let mut now = NOW;
    for generation in 1..=times {
        let free = Event::Capacity { free: f::places(1) };
        for event in [Event::Tick, free, f::ready(generation, 0), f::ended(generation, 0, signal(11))] {
            state = transition(&state, event, now).0;
        }
        now = now.plus(Duration::from_secs(60));
    }
    state
}

#[test]
fn budgets_end_a_job_with_their_own_codes() {
    assert_eq!(failed(&failing(0, 3, 1)).0, 1);
    assert!(matches!(failing(2, 9, 2).life, Life::BackOff { .. }));
    assert_eq!(failed(&failing(2, 9, 3)).0, 6);
    assert!(matches!(failing(9, 2, 2).life, Life::BackOff { .. }));
    assert_eq!(failed(&failing(9, 2, 3)).0, 93);
}

#[test]
fn a_lost_worker_is_a_failure_of_its_ranks_and_needs_no_word_of_their_end() {
    let lost = |slot: u32| Event::WorkerLost { worker: f::place(slot).worker };
    let state = check(&f::running(2), lost(1), &["end 0 g1"]);
    assert_eq!(state.failures[0].cause, FailureCause::WorkerLost);
    let state = check(&state, lost(0), &[]);
    assert!(matches!(state.life, Life::BackOff { .. }));
    check(&state, lost(7), &[]);
}

#[test]
fn a_worker_that_comes_back_with_its_trainers_changes_nothing_and_hears_what_is_owed() {
    let living = |generation: u64| super::LivingTrainer {
        generation: Generation(generation),
        slot: f::place(1).slot,
        pid: 101,
        peer: f::peer(1),
    };
    let back = |living| Event::WorkerRegistered { worker: f::place(1).worker, living };
    let state = f::training(2);
    let next = check(&state, back(vec![living(2)]), &["plan 1 g2 rank 1 of 2 stage 1"]);
    assert_eq!(next, state);
    check(&f::starting(2), back(vec![]), &["start 1 g1"]);
    // Without its trainer: the trainer's end is told soon, or it is missing.
    let next = check(&state, back(vec![]), &["plan 1 g2 rank 1 of 2 stage 1"]);
    check(&next, Event::Tick, &[]);
    check_at(later(2), &next, Event::Tick, &["start 0 g3", "start 1 g3"]);
    // A trainer of a generation that is over is ended.
    check(&f::submitted(2), back(vec![living(0)]), &["end 1 g0"]);
}

#[test]
fn how_a_trainer_ends_that_has_done_its_work_is_no_failure() {
    let done = f::after(f::training(2), [f::finished(2, 0, false), f::finished(2, 1, false)]);
    let done = f::after(done, [f::ready(3, 0), f::ready(3, 1), f::finished(3, 0, false)]);
    let done = check(&done, f::finished(3, 1, false), &["end 0 g3", "end 1 g3"]);
    // Killed after a grace of which this coordinator does not know, as another gave the order.
    let state = f::after(done.clone(), [f::ended(3, 0, None), f::ended(3, 1, signal(9))]);
    // Gone when its worker was back: how it ended, nobody knows.
    let back = Event::WorkerRegistered { worker: f::place(1).worker, living: Vec::new() };
    let missing = transition(&f::after(done, [f::ended(3, 0, None), back]), Event::Tick, later(2)).0;
    for state in [state, missing] {
        assert_eq!(phase(&state), Phase::Succeeded);
        assert!(state.failures.is_empty(), "{:?}", state.failures);
    }
}

#[test]
fn stop_writes_a_checkpoint_first_and_resume_goes_on_with_fresh_budgets() {
    let state = check(&f::training(2), Event::Stop, &["stop 0 g2", "stop 1 g2"]);
    assert_eq!(phase(&state), Phase::Stopping);
    check(&state, Event::Stop, &[]);
    let state = check(&state, f::written(2, 0, 7), &[]);
    let state = check(&state, f::written(2, 1, 7), &["commit 0 g2 step 7"]);
    let state = f::after(state, [Event::CheckpointCommitted { generation: Generation(2), step: Step(7) }]);
    let state = check(&state, f::finished(2, 0, true), &[]);
    let state = check(&state, f::finished(2, 1, true), &["end 0 g2", "end 1 g2"]);
    let state = f::after(state, [f::ended(2, 0, None), f::ended(2, 1, signal(15))]);
    assert_eq!(phase(&state), Phase::Stopped);
    let state =
        check(&state, Event::Resume(Resume { step: None, world_size: Some(WorldSize(1)), ..Resume::default() }), &[]);
    let state = check(&state, Event::Capacity { free: f::places(2) }, &["start 0 g3"]);
    check(&state, f::ready(3, 0), &["plan 0 g3 rank 0 of 1 stage 1 from 7"]);
}

#[test]
fn stop_of_a_waiting_job_is_immediate_and_a_chosen_step_is_obeyed() {
    let state = check(&f::submitted(2), Event::Stop, &[]);
    assert_eq!(phase(&state), Phase::Stopped);
    let chosen = |step| Event::Resume(Resume { step: Some(Step(step)), ..Resume::default() });
    assert!(matches!(refuses(&state, &chosen(3)), Err(Refused::NoCheckpoints { .. })));
    let state = f::after(f::training(1), [f::ended(2, 0, f::said("bad"))]);
    assert_eq!(failed(&state).0, 1);
    let state = check(&state, chosen(3), &[]);
    let state = check(&state, Event::Capacity { free: f::places(1) }, &["start 0 g3"]);
    check(&state, f::ready(3, 0), &["plan 0 g3 rank 0 of 1 stage 1 from 3"]);
}

#[test]
fn weights_change_on_resume_and_the_trainers_are_told_that_they_may() {
    let stopped = check(&f::submitted(1), Event::Stop, &[]);
    let with = |name: &str| {
        let weights = std::iter::once((name.to_owned(), 3)).collect();
        Event::Resume(Resume { weights, ..Resume::default() })
    };
    assert!(matches!(refuses(&stopped, &with("nothing")), Err(Refused::Weights(_))));
    let name = stopped.recipe.training("clip").unwrap().data[0].clone();
    let mut trained = stopped.clone();
    trained.stages.iter_mut().for_each(|stage| stage.done = true);
    assert!(matches!(refuses(&trained, &with(&name)), Err(Refused::Weights(_))));
    let resumed = check(&stopped, with(&name), &[]);
    assert_eq!((resumed.weights, stopped.weights), (Weights::MayChange, Weights::AsWritten));
    assert_ne!(resumed.fingerprint, stopped.fingerprint);
    assert_eq!(resumed.fingerprint, resumed.recipe.fingerprint());
}

#[test]
fn an_abandoned_job_can_be_resumed_at_once_and_finds_what_was_committed_meanwhile() {
    let state = f::after(f::training(1), [f::written(2, 0, 4)]);
    assert!(matches!(refuses(&state, &Event::Resume(Resume::default())), Err(Refused::NotOver(_))));
    let state = check(&state, Event::Abandoned, &[]);
    assert_eq!(failed(&state).0, 5);
    let state = check(&state, Event::CheckpointFound { step: Step(4) }, &[]);
    let state = check(&state, Event::Resume(Resume::default()), &[]);
    let state = check(&state, Event::Capacity { free: f::places(1) }, &["start 0 g3"]);
    check(&state, f::ready(3, 0), &["plan 0 g3 rank 0 of 1 stage 1 from 4"]);
    assert!(matches!(check(&f::submitted(1), Event::Abandoned, &[]).life, Life::Failed { .. }));
}

#[test]
fn after_a_restart_everything_unconfirmed_is_sent_again() {
    let again = |state: &JobState| recover(state).iter().map(short).collect::<Vec<_>>();
    assert_eq!(again(&f::submitted(2)), [""; 0]);
    assert_eq!(again(&f::after(f::starting(2), [f::ready(1, 0)])), ["start 1 g1"]);
    let state = f::after(f::training(1), [f::written(2, 0, 4)]);
    assert_eq!(again(&state), ["plan 0 g2 rank 0 of 1 stage 1", "commit 0 g2 step 4"]);
    let state = f::after(state, [Event::Stop]);
    assert_eq!(again(&state), ["plan 0 g2 rank 0 of 1 stage 1", "commit 0 g2 step 4", "stop 0 g2"]);
    let state = f::after(f::running(2), [f::ended(1, 0, signal(9))]);
    assert_eq!(again(&state), ["end 1 g1"]);
    let state = f::after(f::training(2), [f::ended(2, 0, signal(9)), f::ready(3, 1)]);
    assert_eq!(again(&state), ["start 0 g3"]);
}

#[test]
fn no_wait_is_for_ever() {
    check_at(later(180), &f::starting(1), Event::Tick, &["end 0 g1"]);
    let state = f::after(f::training(1), [Event::Stop]);
    // What a stop may take, and what the recipe grants to storage.
    let state = check_at(later(600), &state, Event::Tick, &["end 0 g2"]);
    let grace = GRACE.as_secs();
    check_at(later(600 + grace + 15), &state, Event::Tick, &["end 0 g2"]);
    assert!(matches!(state.life, Life::Ending { then: After::Stop, .. }));
}
