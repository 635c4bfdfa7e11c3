//! Losses, and the end of a generation's processes.

use super::{After, Command, Life, transition::Step};
use crate::rendezvous::Place;
use common::{
    ids::Generation,
    status::{Failure, FailureCause},
};
use std::{path::PathBuf, time::Duration};

/// How long a trainer may take to end before it is killed.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// How many failures are kept, the newest: a job's record must fit a store's limit after years of them.
const KEPT_FAILURES: usize = 200;

/// What is known of a trainer's end.
pub(super) struct Obituary {
    pub(super) pid: Option<u32>,
    pub(super) cause: Option<FailureCause>,
    pub(super) last_lines: Vec<String>,
    pub(super) log: Option<PathBuf>,
}

impl Step {
    /// A process ended: as it was told to, or by a failure that ends its generation.
    pub(super) fn ended(&mut self, generation: Generation, place: &Place, mut obituary: Obituary) {
        let (ordered, ending) = (self.is_ours(obituary.cause.as_ref()), matches!(self.state.life, Life::Ending { .. }));
        let Some(membership) = self.current(generation) else { return };
        if membership.spare_mut(place).is_some() {
            return self.spare_ended(place, ending);
        }
        let Some(rank) = membership.rank_of(place) else { return };
        let Some(member) = membership.member_mut(rank).filter(|member| !member.ended) else { return };
        // Of one that has done its work nothing is lost with it, however it ends.
        let ours = ordered || (ending && member.finished.is_some());
        member.ended = true;
        member.pid = obituary.pid.or(member.pid);
        // Its worker may have been restarted since it was told to end it.
        let killed = !ours && !matches!(obituary.cause, Some(FailureCause::Hung(_)));
        if let Some(stuck) = member.stuck.take().filter(|_| killed) {
            obituary.cause = Some(FailureCause::Hung(Box::new(stuck)));
        }
        let cause = obituary.cause.clone();
        if !ours {
            self.fail(generation, place, obituary);
        }
        self.go_on_without(&[rank], cause.as_ref());
    }

    /// Whether such an end is what we ordered. SIGKILL follows our order only after the grace.
    fn is_ours(&self, cause: Option<&FailureCause>) -> bool {
        let Life::Ending { grace_until, .. } = &self.state.life else { return false };
        match cause {
            // A worker that has no such trainer (any more) says that it could not be started.
            None | Some(FailureCause::Signal { signal: 15 } | FailureCause::Spawn { .. }) => true,
            Some(FailureCause::Signal { signal: 9 }) => self.now >= *grace_until,
            Some(_) => false,
        }
    }

    /// Records a failure. What came from outside (a signal, a lost machine) goes before what peers say of it.
    pub(super) fn fail(&mut self, generation: Generation, place: &Place, obituary: Obituary) {
        let Some(membership) = self.state.membership.as_ref() else { return };
        let rank = membership.rank_of(place);
        let step = rank.and_then(|rank| membership.members.get(rank.0 as usize)).and_then(|member| member.step);
        let failure = Failure {
            at: self.now,
            generation,
            rank,
            worker: place.worker.clone(),
            pid: obituary.pid,
            cause: obituary.cause.unwrap_or(FailureCause::ExitCode { code: 0 }),
            step,
            last_lines: obituary.last_lines,
            log: obituary.log,
        };
        self.tell("failure", sentence(&failure));
        let outside = |failure: &Failure| {
            use FailureCause::{Diverged, Hung, OutOfMemory, Signal, WorkerLost};
            matches!(failure.cause, Signal { .. } | WorkerLost | Hung(_) | OutOfMemory(_) | Diverged(_))
        };
        let said = |other: &Failure| other.generation == generation && !outside(other);
        let before = self.state.failures.iter().position(said).filter(|_| outside(&failure));
        self.state.failures.insert(before.unwrap_or(self.state.failures.len()), failure);
        while self.state.failures.len() > KEPT_FAILURES {
            self.state.failures.remove(0);
        }
    }

    /// Orders every process of the newest membership that may live to end.
    pub(super) fn end_all(&mut self, then: After) {
        self.enter(Life::Ending { then, grace_until: self.now.plus(GRACE) });
        self.commands.extend(ends(&self.state));
        self.over_when_all_ended();
    }

    /// Ends a trainer of a generation that is over.
    pub(super) fn end_stray(&mut self, generation: Generation, place: Place) {
        self.tell("stray", format!("ending a trainer of generation {generation} on {place}: it is over"));
        let trainer = super::TrainerKey { job: self.state.job.clone(), generation, place };
        self.commands.push(Command::EndTrainer { trainer, grace: GRACE });
    }

    pub(super) fn over_when_all_ended(&mut self) {
        let Life::Ending { then, .. } = self.state.life else { return };
        if self.state.membership.as_ref().is_some_and(|membership| membership.left() > 0) {
            return;
        }
        match then {
            After::Failure => self.judge(),
            After::Requeue => {
                self.state.life = Life::Queued { free: 0, since: Some(self.now) };
                self.tell("requeued", "its trainers have ended; it goes on when places are free".to_owned());
            }
            After::Stop => {
                self.state.life = Life::Stopped;
                self.tell("stopped", "stopped; `resume` goes on".to_owned());
            }
            After::Success => {
                self.state.life = Life::Succeeded;
                self.tell("succeeded", "all stages are done".to_owned());
            }
        }
    }
}

/// The orders to end of the newest membership.
pub(super) fn ends(state: &super::JobState) -> Vec<Command> {
    let Some(membership) = state.active() else { return Vec::new() };
    let left = membership.everyone().filter(|member| !member.ended);
    left.map(|member| Command::EndTrainer { trainer: membership.key(&state.job, member), grace: GRACE }).collect()
}

/// Who failed, where, and why.
pub(super) fn sentence(failure: &Failure) -> String {
    let who = failure.rank.map_or_else(|| "a trainer".to_owned(), |rank| format!("rank {rank}"));
    let step = failure.step.map(|step| format!(" after step {step}")).unwrap_or_default();
    format!("{who} on {}{step}: {}", failure.worker, failure.cause)
}
