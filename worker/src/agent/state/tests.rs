//! What leads to what, as whole lists of actions.

use super::*;
use crate::supervisor::{Exit, Memory, ipc::Report};
use common::ids::{Rank, Step};

const SLOT: Slot = Slot(0);
const TICK: Duration = Duration::from_secs(3);

fn named(job: &str, generation: u64) -> TrainerRef {
    TrainerRef { job: job.parse().unwrap(), generation: Generation(generation), slot: SLOT }
}

fn assignment(job: &str, generation: u64) -> Assignment {
    let TrainerRef { job, generation, slot } = named(job, generation);
    Assignment { slot, job, generation, output: "/out".into() }
}

fn start(job: &str, generation: u64) -> WorkerOrder {
    WorkerOrder::Start { trainer: named(job, generation), output: "/out".into() }
}

fn end(job: &str, generation: u64) -> WorkerOrder {
    WorkerOrder::End { trainer: named(job, generation), grace: TICK }
}

fn ready(job: &str, generation: u64) -> Action {
    Action::Tell(WorkerReport::Ready(Ready { trainer: named(job, generation), pid: 7, peer: "host:1".into() }))
}

fn remember(generation: u64) -> Action {
    Action::Remember(SLOT, Generation(generation), Some("host:1".into()))
}

fn ended(job: &str, generation: u64, cause: Option<FailureCause>) -> Action {
    let log = Some("/log".into());
    Action::Tell(WorkerReport::Ended(Ended {
        trainer: named(job, generation),
        cause,
        pid: Some(7),
        last_lines: vec![],
        log,
    }))
}

/// The end of process 7.
fn exit(exit: Exit) -> End {
    End { slot: SLOT, pid: 7, exit, last_lines: vec![], memory: Memory::default(), stacks: None }
}

fn hello() -> Report {
    Report::Hello { pid: 7, peer: "host:1".into(), generation: None }
}

fn finished(generation: u64) -> Report {
    Report::StageFinished { generation: Generation(generation), rank: Rank(0), summary: None, stopped: false }
}

/// A worker of two slots with a session; a trainer of job `a`, generation 1, process 7, lives on slot 0.
fn running() -> State {
    let mut state = State::new(2);
    assert_eq!(state.connected(), []);
    assert_eq!(state.order(start("a", 1)), [Action::Start(assignment("a", 1))]);
    state.started(&assignment("a", 1), 7, "/log".into());
    assert_eq!(state.report(SLOT, 7, hello()), [remember(1), ready("a", 1)]);
    state
}

#[test]
fn a_trainer_of_the_same_job_is_given_to_the_next_membership_at_once() {
    let mut state = running();
    assert_eq!(state.order(start("a", 2)), [remember(2), ready("a", 2)]);
    assert_eq!(state.order(start("a", 2)), [remember(2), ready("a", 2)]);
    assert_eq!(state.order(start("a", 1)), []);
    assert_eq!(state.order(WorkerOrder::Stop { trainer: named("a", 1) }), []);
    assert_eq!(state.order(WorkerOrder::Stop { trainer: named("a", 2) }), [Action::Order(SLOT, Order::Stop)]);
}

#[test]
fn a_trainer_of_another_job_ends_before_the_slot_is_taken() {
    let mut state = running();
    assert_eq!(state.order(start("b", 1)), [Action::End(SLOT, GRACE)]);
    assert_eq!(state.order(start("b", 2)), []);
    let cause = Some(FailureCause::Signal { signal: 15 });
    let expected = [ended("a", 1, cause), Action::Start(assignment("b", 2))];
    assert_eq!(state.ended(exit(Exit::Signal(15))), expected);
}

#[test]
fn a_trainer_that_was_told_to_end_is_not_given_to_the_next_membership() {
    let mut state = running();
    assert_eq!(state.order(end("a", 1)), [Action::End(SLOT, TICK)]);
    assert_eq!(state.order(start("a", 2)), []);
    let expected = [ended("a", 1, None), Action::Start(assignment("a", 2))];
    assert_eq!(state.ended(exit(Exit::Code(0))), expected);
}

#[test]
fn an_order_to_end_is_always_answered_unless_it_is_stale() {
    let mut state = running();
    state.order(start("a", 2));
    assert_eq!(state.order(end("a", 1)), []);
    assert_eq!(state.order(end("a", 2)), [Action::End(SLOT, TICK)]);
    let gone = state.ended(exit(Exit::Code(0)));
    assert_eq!(state.order(end("a", 2)), gone);
    let [Action::Tell(WorkerReport::Ended(answer))] = &state.order(end("b", 1))[..] else { panic!("no answer") };
    assert!(matches!(&answer.cause, Some(FailureCause::Spawn { message }) if message.contains("no such trainer")));
}

#[test]
fn what_the_trainer_said_is_the_cause() {
    let mut state = running();
    assert_eq!(state.report(SLOT, 7, Report::Failed { generation: None, message: "no file".into(), cause: None }), []);
    let cause = Some(FailureCause::Error { message: "no file".into() });
    assert_eq!(state.ended(exit(Exit::Code(1))), [ended("a", 1, cause)]);
    assert_eq!(state.report(SLOT, 7, hello()), []);
    assert_eq!(state.ended(exit(Exit::Code(1))), []);
}

#[test]
fn a_coordinator_that_comes_back_is_told_what_it_missed() {
    let mut state = running();
    state.disconnected();
    assert_eq!(state.report(SLOT, 7, finished(1)), []);
    assert_eq!(state.report(SLOT, 7, finished(1)), []);
    let trainer = named("a", 1);
    assert_eq!(state.living(), [Ready { trainer: trainer.clone(), pid: 7, peer: "host:1".into() }]);
    let stage = WorkerReport::StageFinished { trainer, rank: Rank(0), summary: None, stopped: false };
    assert_eq!(state.connected(), [Action::Tell(stage)]);
    state.disconnected();
    assert_eq!(state.ended(exit(Exit::Signal(9))), []);
    let cause = Some(FailureCause::Signal { signal: 9 });
    assert_eq!((state.living(), state.connected()), (vec![], vec![ended("a", 1, cause)]));
}

#[test]
fn the_next_membership_forgets_the_reports_of_the_one_before() {
    let mut state = running();
    let committed = Report::CheckpointCommitted { generation: Generation(1), step: Step(5) };
    assert_eq!(state.report(SLOT, 7, committed).len(), 1);
    assert_eq!(state.connected().len(), 1);
    state.order(start("a", 2));
    assert_eq!(state.connected(), []);
}

#[test]
fn a_plan_that_cannot_be_read_ends_the_trainer_that_would_wait_for_it() {
    let mut state = running();
    let order = WorkerOrder::Unreadable { trainer: named("a", 1), message: "no plan".into() };
    assert_eq!(state.order(order), [Action::End(SLOT, GRACE)]);
    let cause = Some(FailureCause::Error { message: "no plan".into() });
    assert_eq!(state.ended(exit(Exit::Signal(15))), [ended("a", 1, cause)]);
}

#[test]
fn a_worker_that_leaves_with_its_trainers_waits_for_them_and_takes_no_more() {
    let mut state = running();
    assert_eq!(state.leave(), [Action::End(SLOT, GRACE)]);
    let [Action::Tell(WorkerReport::Ended(refused))] = &state.order(start("b", 1))[..] else { panic!("no answer") };
    assert_eq!(refused.cause, Some(FailureCause::Spawn { message: "the worker is ending".into() }));
    assert_eq!(state.ended(exit(Exit::Code(0))), [ended("a", 1, None), Action::Leave]);
    assert_eq!(State::new(1).leave(), [Action::Leave]);
}

#[test]
fn a_slot_that_is_none_and_a_program_that_does_not_start_are_told() {
    let mut state = running();
    let trainer = TrainerRef { slot: Slot(2), ..named("a", 1) };
    let actions = state.order(WorkerOrder::Start { trainer, output: "/out".into() });
    let [Action::Tell(WorkerReport::Ended(refused))] = &actions[..] else { panic!("{actions:?}") };
    assert!(refused.cause.as_ref().unwrap().to_string().contains("--trainers"));
    let other = Assignment { slot: Slot(1), ..assignment("a", 1) };
    let actions = state.not_started(&other, "no program".into());
    let [Action::Tell(WorkerReport::Ended(refused))] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(
        (refused.pid, refused.cause.clone()),
        (None, Some(FailureCause::Spawn { message: "no program".into() }))
    );
}

#[test]
fn an_end_is_told_under_the_membership_that_asks_for_it_though_its_start_never_came() {
    let mut state = running();
    assert_eq!(state.order(end("a", 2)), [Action::End(SLOT, TICK)]);
    let told = ended("a", 2, Some(FailureCause::Signal { signal: 15 }));
    assert_eq!(state.ended(exit(Exit::Signal(15))), [told]);
    // And asked for again by a coordinator that has not heard of it, under a later one still.
    assert_eq!(state.order(end("a", 3)), [ended("a", 3, Some(FailureCause::Signal { signal: 15 }))]);
}

#[test]
fn a_stuck_trainer_is_killed_once_and_counts_as_lost_for_that_with_its_stacks() {
    use common::{cause::Because, pulse::Doing};
    let mut state = running();
    let stuck = Stuck {
        step: Step(3),
        doing: Doing::Computing,
        operation: None,
        because: Because::Stopped,
        quiet_s: 11,
        limit_s: 10,
        waiting: vec![],
        waiting_in: None,
        stacks: None,
    };
    let order = |generation| WorkerOrder::EndStuck { trainer: named("a", generation), stuck: Box::new(stuck.clone()) };
    assert_eq!(state.order(order(2)), [], "of another membership nothing is known");
    assert_eq!(state.order(order(1)), [Action::EndStuck(SLOT)]);
    assert_eq!(state.order(order(1)), []);
    let told = state.ended(End { stacks: Some("/log.stacks".into()), ..exit(Exit::Signal(9)) });
    let cause = FailureCause::Hung(Box::new(Stuck { stacks: Some("/log.stacks".into()), ..stuck }));
    assert_eq!(told, [ended("a", 1, Some(cause))]);
}
