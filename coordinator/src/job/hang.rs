//! Which rank is stuck, of what all ranks' machines say of them; and its end.
//!
//! In a collective operation everybody waits for whoever is not there, so that all ranks get no further when one does. The one
//! is whose process is stopped; or who waits for nobody, while others called operations that it has not; or who called
//! another operation than the others.

use super::{Command, Life, Membership, membership::Told, transition::Step};
use crate::rendezvous::Place;
use common::{
    cause::{Because, Stuck},
    ids::Rank,
    pulse::{Doing, Operation, ProcessState, Pulse},
    recipe::Detection,
    status::FailureCause,
    time::Timestamp,
};
use std::time::Duration;

/// What was said of a rank counts for so long: of a quiet one something is said every second.
const FRESH: Duration = Duration::from_secs(5);
/// How long a rank may compute without getting further when nobody is further than it: longer than collectives wait, which
/// see a device that is stuck.
const ALONE: Duration = Duration::from_secs(300);

impl Step {
    /// Where a rank stands, by its machine's word.
    pub(super) fn pulse(&mut self, place: &Place, pulse: Pulse) {
        let now = self.now;
        let detect = self.state.recipe.faults.detect;
        let works = matches!(self.state.life, Life::Running | Life::Stopping);
        let Some(membership) = self.state.membership.as_mut().filter(|_| works) else { return };
        let Some(rank) = membership.rank_of(place).filter(|_| pulse.generation <= membership.generation) else {
            return;
        };
        let Some(member) = membership.member_mut(rank).filter(|member| !member.ended && member.stuck.is_none()) else {
            return;
        };
        member.pulse = pulse.quiet.is_some().then_some(Told { at: now, pulse });
        let Some(stuck) = judge(membership, rank, &detect, now) else { return };
        self.stuck(rank, stuck);
    }

    /// Has a stuck rank's process killed; what comes then is as after any other death.
    fn stuck(&mut self, rank: Rank, stuck: Stuck) {
        let Some(member) = self.state.membership.as_mut().and_then(|membership| membership.member_mut(rank)) else {
            return;
        };
        member.stuck = Some(stuck.clone());
        let worker = member.place.worker.clone();
        self.tell("stuck", format!("rank {rank} on {worker} is ended: {}", FailureCause::Hung(Box::new(stuck))));
        let orders: Vec<Command> = ends(&self.state).into_iter().collect();
        self.commands.extend(orders);
    }
}

/// The orders to end ranks that are stuck.
pub(super) fn ends(state: &super::JobState) -> Vec<Command> {
    let Some(membership) = state.active() else { return Vec::new() };
    let living = membership.members.iter().filter(|member| !member.ended);
    let stuck = living.filter_map(|member| Some((member, member.stuck.clone()?)));
    stuck
        .map(|(member, stuck)| Command::EndStuck {
            trainer: membership.key(&state.job, member),
            stuck: Box::new(stuck),
        })
        .collect()
}

/// Whether this rank, of which something was said just now, is the one that is stuck.
fn judge(membership: &Membership, rank: Rank, detect: &Detection, now: Timestamp) -> Option<Stuck> {
    let pulse = &membership.members.get(rank.0 as usize)?.pulse.as_ref()?.pulse;
    let quiet = pulse.quiet?;
    let learned = pulse.slow_step.filter(|_| pulse.doing.is_of_steps());
    let limit = match pulse.process {
        ProcessState::Traced => return None,
        // There is nothing that it could be waiting for.
        ProcessState::Stopped => detect.limit(Some(pulse.slow_step.unwrap_or_default()))?,
        ProcessState::Alive | ProcessState::Uninterruptible => detect.limit(learned)?,
    };
    if quiet < limit {
        return None;
    }
    let peers: Vec<(Rank, &Pulse)> = peers(membership, rank, now).collect();
    let because = if pulse.process == ProcessState::Stopped {
        Because::Stopped
    } else if pulse.waiting && pulse.generation == membership.generation {
        mismatch(rank, pulse, &peers)?
    } else {
        let called = calls(pulse);
        // What it called in an earlier membership is not to be held against what others called in this one.
        let late = pulse.generation < membership.generation;
        let behind = late || peers.iter().any(|(_, peer)| calls(peer) > called);
        let ahead = !late && peers.iter().any(|(_, peer)| calls(peer) < called);
        let by_itself = pulse.doing != Doing::Computing || membership.living() == 1 || quiet >= ALONE;
        if ahead || !(behind || by_itself) {
            return None;
        }
        Because::NoProgress { process: pulse.process }
    };
    let waiting: Vec<(Rank, &Pulse)> = peers.into_iter().filter(|(_, peer)| peer.waiting).collect();
    Some(Stuck {
        step: pulse.step,
        doing: pulse.doing,
        operation: pulse.newest(),
        because,
        quiet_s: quiet.as_secs(),
        limit_s: limit.as_secs(),
        waiting_in: waiting.first().and_then(|(_, peer)| peer.newest()),
        waiting: waiting.into_iter().map(|(rank, _)| rank).collect(),
        stacks: None,
    })
}

/// The other ranks that get no further either, in this membership.
fn peers(membership: &Membership, but: Rank, now: Timestamp) -> impl Iterator<Item = (Rank, &Pulse)> {
    let fresh = move |told: &&Told| now.since(told.at) <= FRESH && told.pulse.generation == membership.generation;
    let others =
        membership.world().ranks().zip(&membership.members).filter(move |(rank, member)| *rank != but && !member.ended);
    others.filter_map(move |(rank, member)| Some((rank, &member.pulse.as_ref().filter(fresh)?.pulse)))
}

/// How many operations it called.
fn calls(pulse: &Pulse) -> u64 {
    pulse.newest().map_or(0, |newest| newest.number + 1)
}

/// Whether a rank that waits in an operation is the one that called another than its peers: of those that differ at the first
/// number where any do, the fewer; of as many, the one that called fewer operations; of those the higher rank.
fn mismatch(rank: Rank, pulse: &Pulse, peers: &[(Rank, &Pulse)]) -> Option<Because> {
    let all = || peers.iter().copied().chain([(rank, pulse)]).filter(|(_, pulse)| pulse.waiting);
    let at = |pulse: &Pulse, number: u64| pulse.operations.iter().find(|operation| operation.number == number).copied();
    let differs = |number: &u64| {
        let mut called = all().filter_map(|(_, pulse)| at(pulse, *number));
        let first = called.next();
        called.any(|other| Some(other) != first)
    };
    let number = pulse.operations.iter().map(|operation| operation.number).find(differs)?;
    let called = at(pulse, number)?;
    let with = |operation: Operation| all().filter(|(_, pulse)| at(pulse, number) == Some(operation)).count();
    let here = || all().filter_map(|(rank, pulse)| Some((rank, pulse, at(pulse, number)?)));
    let (culprit, ..) =
        here().min_by_key(|(rank, pulse, operation)| (with(*operation), calls(pulse), std::cmp::Reverse(*rank)))?;
    let due =
        here().map(|(_, _, operation)| operation).filter(|operation| *operation != called).max_by_key(|o| with(*o))?;
    (culprit == rank).then_some(Because::Mismatch { called, due })
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::{
        ids::{Generation, Step as StepNumber},
        pulse::OperationKind,
    };

    const NOW: Timestamp = Timestamp(1_000_000);

    /// A rank that takes step 9, called so many operations, and has been quiet for 12 s.
    fn pulse(called: u64, waiting: bool) -> Pulse {
        let operation = |number| Operation { number, kind: OperationKind::AllReduce, bytes: 8 };
        Pulse {
            generation: Generation(2),
            step: StepNumber(9),
            doing: Doing::Computing,
            operations: (called.saturating_sub(4)..called).map(operation).collect(),
            waiting,
            quiet: Some(Duration::from_secs(12)),
            slow_step: Some(Duration::from_secs(1)),
            process: ProcessState::Alive,
        }
    }

    /// Who is found to be stuck among these, and why.
    fn found(pulses: &[Option<Pulse>]) -> Vec<(u32, Because)> {
        let places = super::super::fixture::places(pulses.len() as u32);
        let mut membership = Membership::new(Generation(2), 1, None, places, NOW);
        for (member, pulse) in membership.members.iter_mut().zip(pulses) {
            member.pulse = pulse.clone().map(|pulse| Told { at: NOW, pulse });
        }
        let judged = |rank: Rank| Some((rank.0, judge(&membership, rank, &Detection::default(), NOW)?.because));
        membership.world().ranks().filter_map(judged).collect()
    }

    fn check(pulses: &[Option<Pulse>], expected: &[(u32, Because)]) {
        assert_eq!(found(pulses), expected);
    }

    fn no_progress() -> Because {
        Because::NoProgress { process: ProcessState::Alive }
    }

    #[test]
    fn who_computes_while_others_wait_is_the_one_and_who_waits_is_not() {
        check(&[Some(pulse(8, true)), Some(pulse(7, false)), Some(pulse(8, true))], &[(1, no_progress())]);
        // On a GPU the host waits for its device, and not in a call.
        check(&[Some(pulse(8, false)), Some(pulse(7, false))], &[(1, no_progress())]);
        check(&[Some(pulse(8, true)), Some(pulse(8, true))], &[]);
        // The other one still goes on, so that it may be waited for.
        check(&[Some(pulse(8, false)), None], &[]);
        check(&[Some(pulse(8, false))], &[(0, no_progress())]);
    }

    #[test]
    fn a_stopped_process_is_the_one_wherever_it_stands_and_one_that_a_debugger_holds_is_left_alone() {
        let stopped = Pulse { process: ProcessState::Stopped, ..pulse(8, true) };
        check(&[Some(pulse(8, true)), Some(stopped.clone())], &[(1, Because::Stopped)]);
        check(&[Some(Pulse { doing: Doing::Preparing, slow_step: None, ..stopped.clone() })], &[(0, Because::Stopped)]);
        check(&[Some(Pulse { process: ProcessState::Traced, ..stopped })], &[]);
    }

    #[test]
    fn limits_are_of_steps_where_it_is_a_step_and_long_elsewhere() {
        let alone = |doing, slow_step: Option<u64>, quiet| {
            let (slow_step, quiet) = (slow_step.map(Duration::from_secs), Some(Duration::from_secs(quiet)));
            !found(&[Some(Pulse { doing, slow_step, quiet, ..pulse(8, false) })]).is_empty()
        };
        assert!(alone(Doing::LoadingBatch, Some(1), 10) && !alone(Doing::LoadingBatch, Some(1), 9));
        assert!(alone(Doing::Computing, Some(20), 60) && !alone(Doing::Computing, Some(20), 59));
        assert!(alone(Doing::Computing, None, 1800) && !alone(Doing::Computing, None, 1799), "before the first steps");
        assert!(!alone(Doing::SavingCheckpoint, Some(1), 1799) && alone(Doing::Evaluating, Some(1), 1800));
    }

    #[test]
    fn a_rank_that_left_an_operation_out_is_the_one_with_what_it_called_and_what_was_due() {
        let with = |mut pulse: Pulse, number: u64, bytes: u64| {
            pulse.operations.iter_mut().filter(|o| o.number == number).for_each(|o| o.bytes = bytes);
            pulse
        };
        let operation = |bytes| Operation { number: 6, kind: OperationKind::AllReduce, bytes };
        let mismatch = Because::Mismatch { called: operation(99), due: operation(8) };
        let odd = Some(with(pulse(7, true), 6, 99));
        check(&[Some(pulse(8, true)), odd.clone(), Some(pulse(8, true))], &[(1, mismatch.clone())]);
        check(&[odd, Some(pulse(8, true))], &[(0, mismatch)]);
    }

    #[test]
    fn a_rank_that_does_not_take_up_its_plan_is_the_one() {
        let old = Pulse { generation: Generation(1), ..pulse(9, true) };
        check(&[Some(pulse(2, true)), Some(old)], &[(1, no_progress())]);
    }
}
