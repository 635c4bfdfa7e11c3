//! Lost ranks whose peers live: others take their places, or the same ones again, and all go on from what is held in memory.

use super::{After, Life, Membership, ending::Obituary, transition::Step};
use crate::rendezvous::Place;
use common::{
    ids::{Generation, Rank, Step as StepNumber, WorkerId},
    status::FailureCause,
};
use std::time::Duration;

/// How long the newest step of a training may be as it is when a worker is silent: longer than the time between two reports.
/// Three steps' time comes on top.
const STILL: Duration = Duration::from_millis(2_500);
/// How long all workers of a job may be silent: it may be the coordinator that nobody can reach.
const ISOLATED: Duration = Duration::from_secs(60);
/// How long ranks may be apart before it counts as a failure of the network between them: longer than a lease, as the death of
/// a machine explains it.
const APART: Duration = Duration::from_secs(8);

impl Step {
    /// Whether the loss of ranks with this cause is one that the others survive: the stage trains, so that they hold its state; no
    /// process said itself what is wrong, which another one would find as well; and the budgets allow it.
    pub(super) fn recovers(&self, cause: Option<&FailureCause>) -> bool {
        let Some(membership) = self.state.membership.as_ref() else { return false };
        let died = match cause {
            Some(FailureCause::Signal { .. } | FailureCause::ExitCode { .. } | FailureCause::WorkerLost) => true,
            Some(FailureCause::Hung(_)) => true,
            // Another one would run out as well, unless it was a matter of what else there was: tried once.
            Some(FailureCause::OutOfMemory(_)) => membership.advanced(),
            // Most of the others agree, and have all there is.
            Some(FailureCause::Diverged(diverged)) => !diverged.ranks.is_empty() && !self.shards(),
            None | Some(FailureCause::Error { .. } | FailureCause::Spawn { .. }) => false,
        };
        died && self.may_go_on()
    }

    /// Whether somebody holds the state in memory, and the budgets allow another membership.
    fn may_go_on(&self) -> bool {
        let Some(membership) = self.state.membership.as_ref() else { return false };
        // Before the first plans nobody holds anything.
        let holds = matches!(self.state.life, Life::Running | Life::Stopping | Life::Regrouping { .. })
            || membership.held.is_some();
        let (counters, faults) = (self.state.counters, self.state.recipe.faults);
        let allowed = counters.failures < faults.max_failures
            && (membership.advanced() || counters.no_progress < faults.max_no_progress);
        self.trains() && holds && allowed && membership.living() > 0
    }

    /// Whether the newest membership trains.
    pub(super) fn trains(&self) -> bool {
        let stage = self.state.membership.as_ref().and_then(|m| self.state.recipe.stages.get(m.stage));
        stage.is_some_and(|stage| stage.training().is_some())
    }

    /// Whether each rank of the newest membership has the optimizer's state of its share alone: it is lost with the rank.
    pub(super) fn shards(&self) -> bool {
        let stage = self.state.membership.as_ref().and_then(|m| self.state.recipe.stages.get(m.stage));
        stage.and_then(|stage| stage.training()).is_some_and(|training| training.optimizer.sharded)
    }

    /// Counts a loss that the others survive, and goes on without those who are gone.
    pub(super) fn mend(&mut self, lost: &str) {
        let Some(membership) = self.state.membership.as_ref() else { return };
        let (advanced, held, living) = (membership.advanced(), membership.newest_step(), membership.living());
        let counters = &mut self.state.counters;
        counters.failures += 1;
        counters.no_progress = if advanced { 0 } else { counters.no_progress + 1 };
        let left = self.state.recipe.faults.max_failures.saturating_sub(counters.failures);
        let kept = match (self.shards(), living) {
            (true, _) => "its share of the optimizer's state with it: all go on from the newest checkpoint".to_owned(),
            (false, 1) => format!("the other one keeps step {held} in memory"),
            (false, _) => format!("the others keep step {held} in memory"),
        };
        self.tell("recovery", format!("{lost}; {kept}; {left} more restarts are allowed"));
        self.regroup(None);
    }

    /// The worker's lease lapsed. Of a training that goes on nothing is lost: what is out of hand is the worker, not the rank.
    pub(super) fn worker_lost(&mut self, worker: &WorkerId) {
        let (running, trains, now) = (matches!(self.state.life, Life::Running), self.trains(), self.now);
        if self.state.active().is_none() {
            return;
        }
        let Some(membership) = self.state.membership.as_mut() else { return };
        membership.spares.retain(|spare| spare.place.worker != *worker);
        let here = |member: &super::Member| member.place.worker == *worker && !member.ended;
        if !membership.members.iter().any(here) {
            return self.over_when_all_ended();
        }
        if !running || !trains {
            let here = membership.members.iter().filter(|member| here(member));
            let places = here.map(|member| member.place.clone()).collect();
            return self.lose(places);
        }
        for member in membership.members.iter_mut().filter(|member| here(member)) {
            member.silent = member.silent.or(Some(now));
        }
        self.judge_silence();
    }

    /// Whether ranks on silent workers are lost: a peer says so, or the training stands still.
    pub(super) fn judge_silence(&mut self) {
        let Some(membership) = self.state.membership.as_ref().filter(|_| matches!(self.state.life, Life::Running))
        else {
            return;
        };
        if let Some(places) = silently_lost(membership, self.now) {
            self.lose(places);
        } else if membership.silent_untold() {
            let step = membership.newest_step();
            self.tell(
                "silent",
                format!("nothing is heard of a worker, and its ranks go on (step {step}): they are left alone"),
            );
        }
        if let Some(membership) = self.state.membership.as_mut() {
            membership.told_silent = membership.members.iter().any(|member| member.silent.is_some());
        }
    }

    /// The ranks on these places are lost with their machines.
    pub(super) fn lose(&mut self, places: Vec<Place>) {
        let Some(membership) = self.state.membership.as_ref() else { return };
        let (generation, mut lost) = (membership.generation, Vec::new());
        for place in places {
            let Some((rank, member)) = self.state.membership.as_mut().and_then(|m| {
                let rank = m.rank_of(&place)?;
                Some((rank, m.member_mut(rank)?))
            }) else {
                continue;
            };
            (member.ended, member.gone) = (true, true);
            let pid = member.pid;
            lost.push(rank);
            let cause = Some(FailureCause::WorkerLost);
            self.fail(generation, &place, Obituary { pid, cause, last_lines: Vec::new(), log: None });
        }
        self.go_on_without(&lost, Some(&FailureCause::WorkerLost));
    }

    /// What the end of ranks means for the others.
    pub(super) fn go_on_without(&mut self, lost: &[Rank], cause: Option<&FailureCause>) {
        match self.state.life {
            Life::Starting | Life::Running | Life::Stopping | Life::Regrouping { .. } if self.recovers(cause) => {
                self.remember_the_stop();
                let gone =
                    |m: &Membership| lost.iter().all(|rank| m.members.get(rank.0 as usize).is_some_and(|m| m.gone));
                let with = if self.state.membership.as_ref().is_some_and(gone) { " with its machine" } else { "" };
                self.mend(&format!("{} lost{with}", ranks(lost)));
            }
            Life::Starting | Life::Running | Life::Regrouping { .. } => self.end_all(After::Failure),
            Life::Stopping => self.end_all(After::Stop),
            _ => self.over_when_all_ended(),
        }
    }

    /// Of a membership that was asked to stop, the next one saves what is in memory, and stops.
    fn remember_the_stop(&mut self) {
        let stopping = matches!(self.state.life, Life::Stopping);
        if let Some(membership) = self.state.membership.as_mut() {
            membership.stop |= stopping;
        }
    }

    /// A rank lost its peers, and waits. Most often the end of one of them is on its way here.
    pub(super) fn apart(&mut self, generation: Generation, rank: Rank, step: Option<StepNumber>, message: String) {
        let since = self.now;
        let Some(member) = self.current(generation).and_then(|membership| membership.member_mut(rank)) else { return };
        member.step = member.step.max(step);
        if member.apart.is_none() {
            member.apart = Some(super::Apart { since, message });
        }
        self.judge_silence();
    }

    /// Ranks that have been apart for long although all of them live.
    pub(super) fn reunite(&mut self) {
        let stopping = matches!(self.state.life, Life::Stopping);
        let works = stopping || matches!(self.state.life, Life::Running);
        let Some(membership) = self.state.membership.as_ref().filter(|_| works) else { return };
        let long =
            |member: &&super::Member| member.apart.as_ref().is_some_and(|apart| self.now.since(apart.since) >= APART);
        let Some(member) = membership.members.iter().find(long) else { return };
        let (generation, place, pid) = (membership.generation, member.place.clone(), member.pid);
        let message = member.apart.as_ref().map(|apart| apart.message.clone()).unwrap_or_default();
        let cause = Some(FailureCause::Error { message });
        self.fail(generation, &place, Obituary { pid, cause, last_lines: Vec::new(), log: None });
        if self.may_go_on() {
            self.remember_the_stop();
            self.mend("the ranks lost each other, and all of them live");
        } else {
            self.end_all(if stopping { After::Stop } else { After::Failure });
        }
    }
}

/// The places of silent workers whose ranks are lost; absent while there is no evidence that any is.
fn silently_lost(membership: &Membership, now: common::time::Timestamp) -> Option<Vec<Place>> {
    let living = membership.members.iter().filter(|member| !member.ended);
    let (silent, heard): (Vec<_>, Vec<_>) = living.partition(|member| member.silent.is_some());
    let since = silent.iter().filter_map(|member| member.silent).max()?;
    let apart = heard.iter().any(|member| member.apart.is_some());
    let still = now.since(membership.moved.unwrap_or(membership.since));
    let lost = if heard.is_empty() {
        now.since(since) >= ISOLATED
    } else {
        apart || still >= STILL + membership.step_time.unwrap_or_default().saturating_mul(3)
    };
    lost.then(|| silent.into_iter().map(|member| member.place.clone()).collect())
}

/// "rank 3 is", "ranks 3, 4 are".
fn ranks(lost: &[Rank]) -> String {
    match lost {
        [one] => format!("rank {one} is"),
        _ => format!("ranks {} are", lost.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    }
}
