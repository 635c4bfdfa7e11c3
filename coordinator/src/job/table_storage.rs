//! Checkpoints that are not written, and such as are damaged: what the job makes of them.

use super::{
    Event, JobState, Resume, fixture as f, status,
    table::{check, check_at, later},
};
use common::{
    alarm::{StorageTrouble, Trouble},
    ids::{Generation, Rank, Step},
};

fn committed(step: u64) -> Event {
    Event::CheckpointCommitted { generation: Generation(2), step: Step(step) }
}

fn kinds(state: &JobState) -> Vec<&str> {
    state.events.iter().map(|event| event.kind.as_str()).filter(|kind| kind.starts_with("checkpoint")).collect()
}

fn slow(rank: u32, step: u64) -> Event {
    let what = Trouble::Slow { operation: "sync".into(), earlier: Step(step - 4), seconds: 30 };
    let trouble = StorageTrouble { rank: Rank(rank), step: Step(step), file: "/shared/demo/x".into(), what };
    Event::StorageTrouble { generation: Generation(2), trouble: Box::new(trouble) }
}

#[test]
fn an_alarm_stands_until_a_checkpoint_is_committed_and_each_change_is_one_event() {
    let state = check(&f::training(2), f::trouble(2, 1, 4, false), &[]);
    let state = check(&state, f::trouble(2, 0, 4, false), &[]);
    let state = check(&state, f::trouble(2, 1, 8, false), &[]);
    let alarm = status(&state, f::NOW).alarm.unwrap();
    assert_eq!((alarm.since_step, alarm.missed, alarm.newest.step), (Step(4), 2, Step(8)));
    assert_eq!(kinds(&state), ["checkpoint-trouble"]);
    let state = check(&state, slow(0, 12), &[]);
    assert_eq!(kinds(&state), ["checkpoint-trouble", "checkpoint-trouble"], "another sort of trouble");

    let state = check(&state, f::written(2, 0, 16), &[]);
    let state = check(&state, f::written(2, 1, 16), &["commit 0 g2 step 16"]);
    let state = check_at(later(60), &state, committed(16), &[]);
    assert_eq!((status(&state, f::NOW).alarm, state.stages[1].checkpoint), (None, Some(Step(16))));
    let last = &state.events.back().unwrap().message;
    assert_eq!(last, "checkpoints are written again: that of step 16, 60 s after step 4; 3 are missing");
}

#[test]
fn a_share_that_failed_and_is_written_again_completes_its_checkpoint_whichever_report_is_first() {
    let state = check(&f::training(2), f::written(2, 0, 4), &[]);
    let state = check(&state, f::trouble(2, 1, 4, false), &[]);
    // The second try: rank 1's report is here before rank 0's.
    check(&state, f::written(2, 1, 4), &["commit 0 g2 step 4"]);

    // The manifest could not be created; rank 1's second share is here before rank 0 says so.
    let state = f::after(f::training(2), [f::written(2, 0, 4), f::written(2, 1, 4), f::written(2, 1, 4)]);
    let state = check(&state, f::trouble(2, 0, 4, false), &[]);
    assert!(state.intents.is_empty());
    check(&state, f::written(2, 0, 4), &["commit 0 g2 step 4"]);
}

#[test]
fn trouble_of_an_older_generation_and_after_a_resume_is_none() {
    let state = check(&f::training(2), f::trouble(1, 0, 4, false), &[]);
    assert_eq!((state.alarm.clone(), state.counters.refused), (None, 1));
    let state = f::after(f::training(2), [f::trouble(2, 0, 4, false), Event::Stop]);
    let ended = [f::finished(2, 0, true), f::finished(2, 1, true), f::ended(2, 0, None), f::ended(2, 1, None)];
    let state = f::after(state, ended);
    assert!(state.alarm.is_some(), "why it has no newer checkpoint is still to be seen");
    assert_eq!(f::after(state, [Event::Resume(Resume::default())]).alarm, None);
}

#[test]
fn a_damaged_checkpoint_is_told_once_and_the_one_before_is_the_newest_then() {
    let mut state = f::training(2);
    state.stages[1].checkpoint = Some(Step(8));
    let state = check(&state, f::trouble(2, 1, 8, true), &[]);
    let state = check(&state, f::trouble(2, 0, 8, true), &[]);
    assert_eq!(state.stages[1].checkpoint, Some(Step(4)));
    assert_eq!(kinds(&state), ["checkpoint-damaged"]);
    assert_eq!(state.alarm, None);
}

#[test]
fn a_checkpoint_that_a_user_names_is_the_only_one_that_will_do_until_there_is_a_newer_one() {
    let stopped = f::after(f::training(1), [Event::Stop, f::finished(2, 0, true), f::ended(2, 0, None)]);
    let named = Event::Resume(Resume { step: Some(Step(4)), ..Resume::default() });
    let state = f::after(stopped.clone(), [named, Event::Capacity { free: f::places(1) }]);
    let chosen = |state: &JobState| {
        let (_, commands) = super::transition(state, f::ready(state.generation.0, 0), f::NOW);
        let [super::Command::SendPlan { plan, .. }] = commands.as_slice() else { panic!("{commands:?}") };
        plan.resume.as_ref().map(|point| (point.step, point.chosen))
    };
    assert_eq!(chosen(&state), Some((Step(4), true)));
    let state = f::after(state, [f::ready(3, 0), f::written(3, 0, 8)]);
    let state = f::after(state, [Event::CheckpointCommitted { generation: Generation(3), step: Step(8) }]);
    assert_eq!((state.stages[1].checkpoint, state.stages[1].chosen), (Some(Step(8)), false));
    let again = f::after(stopped, [Event::Resume(Resume::default()), Event::Capacity { free: f::places(1) }]);
    assert_eq!(chosen(&again), None);
}
