//! Progress, workers that come back, and time.

use super::{After, Life, LivingTrainer, ending::Obituary, transition::Step};
use crate::rendezvous::Place;
use common::{
    ids::WorkerId,
    status::{FailureCause, Progress},
};
use std::time::Duration;

/// How long a worker that came back without a trainer may take to say how it ended.
const MISSING: Duration = Duration::from_secs(2);
/// How long trainers may take to listen for their peers.
const START: Duration = Duration::from_secs(180);
/// How long a stop may take to write its checkpoint, beside what the recipe grants to storage.
const STOP: Duration = Duration::from_secs(300);
/// How long after the grace an order to end is repeated.
const END_AGAIN: Duration = Duration::from_secs(15);

impl Step {
    /// The stage shows what its lowest rank says; every rank's step is kept.
    pub(super) fn progress(&mut self, place: &Place, progress: Progress) {
        let now = self.now;
        let Some(membership) = self.current(progress.generation) else { return };
        let Some(rank) = membership.rank_of(place).filter(|_| membership.stage == progress.stage) else { return };
        let newest = membership.newest_step();
        if let Some(member) = membership.member_mut(rank) {
            member.step = member.step.max(Some(progress.step));
            member.own_step_s = progress.own_step_s.or(member.own_step_s);
        }
        if membership.newest_step() > newest {
            membership.moved = Some(now);
            let step_time = progress.step_s.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            membership.step_time = step_time.or(membership.step_time);
        }
        if rank.0 == 0
            && let Some(stage) = self.state.stages.get_mut(progress.stage)
        {
            stage.progress = Some(progress);
        }
        self.grow();
        self.stragglers();
    }

    /// How long a stop may take: trainers give up on their storage before.
    fn stop_limit(&self) -> Duration {
        STOP + self.state.recipe.faults.storage_wait
    }

    /// A worker is back: what lives is as it was, what does not will be told of, or is missing.
    pub(super) fn registered(&mut self, worker: &WorkerId, living: &[LivingTrainer]) {
        let active = self.state.active().map(|membership| membership.generation);
        for trainer in living {
            let place = Place { worker: worker.clone(), slot: trainer.slot };
            let takes_part =
                self.state.active().is_some_and(|m| m.everyone().any(|member| member.place == place && !member.ended));
            let gone = |m: &super::Membership| m.members.iter().any(|member| member.place == place && member.gone);
            let regrouping = matches!(self.state.life, Life::Regrouping { .. });
            let holds = regrouping && active == Some(trainer.generation) && self.state.active().is_some_and(gone);
            let over = active.is_none_or(|generation| trainer.generation <= generation && !takes_part && !holds);
            // One that the newest membership goes on without would keep its place from others, and nobody would ever end it.
            // A generation that was never given out is unknown, and unknown ends nothing.
            if over && trainer.generation <= self.state.generation {
                self.end_stray(trainer.generation, place);
            }
        }
        let now = self.now;
        let Some(membership) = self.state.membership.as_mut().filter(|_| active.is_some()) else { return };
        let generation = membership.generation;
        let starting = matches!(self.state.life, Life::Starting);
        if matches!(self.state.life, Life::Regrouping { .. }) {
            // It was out of reach, and has what the others wait with.
            for member in membership.members.iter_mut().filter(|member| member.place.worker == *worker && member.gone) {
                let back = living.iter().find(|trainer| trainer.slot == member.place.slot);
                let back = back.filter(|trainer| trainer.generation == generation);
                (member.ended, member.gone) = (back.is_none(), back.is_none());
            }
        }
        membership.spares.retain(|spare| {
            let lives = || living.iter().any(|trainer| trainer.slot == spare.place.slot);
            spare.place.worker != *worker || spare.peer.is_none() || lives()
        });
        let here = membership.members.iter_mut().filter(|member| member.place.worker == *worker && !member.ended);
        for member in here {
            member.silent = None;
            match living.iter().find(|trainer| trainer.slot == member.place.slot) {
                Some(trainer) => {
                    member.missing = None;
                    if trainer.generation == generation && !trainer.peer.is_empty() {
                        member.pid = Some(trainer.pid);
                        if starting {
                            member.peer = Some(trainer.peer.clone());
                        }
                    }
                }
                // Its order to start may never have arrived: it is sent again.
                None if starting && member.peer.is_none() => {}
                None => member.missing = member.missing.or(Some(now)),
            }
        }
        if starting {
            self.run_when_ready();
        }
        self.commands.extend(super::owed(&self.state, worker));
        // Orders that were made just now are among what is owed.
        let mut unique = Vec::with_capacity(self.commands.len());
        for command in self.commands.drain(..) {
            if !unique.contains(&command) {
                unique.push(command);
            }
        }
        self.commands = unique;
    }

    /// Time passed: every wait has its end.
    pub(super) fn tick(&mut self) {
        let now = self.now;
        if let Life::BackOff { until } = self.state.life
            && until <= now
        {
            self.state.life = Life::Queued { free: 0, since: Some(now) };
        }
        self.bury_the_missing();
        self.judge_silence();
        self.reunite();
        let waited = self.state.membership.as_ref().map(|m| now.since(m.since)).unwrap_or_default();
        match &self.state.life {
            Life::Starting if waited >= START => self.give_up_starting(),
            Life::Stopping if waited >= self.stop_limit() => {
                let limit = self.stop_limit().as_secs();
                self.tell("stop-late", format!("the stop wrote no checkpoint within {limit} s"));
                self.end_all(After::Stop);
            }
            Life::Ending { grace_until, .. } if now.since(*grace_until) >= END_AGAIN => {
                let then = match self.state.life {
                    Life::Ending { then, .. } => then,
                    _ => After::Failure,
                };
                self.end_all(then);
            }
            _ => {}
        }
    }

    fn bury_the_missing(&mut self) {
        let Some(membership) = self.state.active() else { return };
        let generation = membership.generation;
        let overdue = |since: &super::Member| since.missing.is_some_and(|since| self.now.since(since) >= MISSING);
        let gone = membership.members.iter().filter(|member| !member.ended && overdue(member));
        let gone: Vec<(Place, Option<u32>)> = gone.map(|member| (member.place.clone(), member.pid)).collect();
        for (place, pid) in gone {
            let cause = Some(FailureCause::WorkerLost);
            self.ended(generation, &place, Obituary { pid, cause, last_lines: Vec::new(), log: None });
        }
    }

    fn give_up_starting(&mut self) {
        let Some(membership) = self.state.active() else { return };
        let generation = membership.generation;
        if membership.held.is_some() {
            return self.leave_the_late();
        }
        let late = membership.members.iter().find(|member| member.peer.is_none() && !member.ended);
        let Some((place, pid)) = late.map(|member| (member.place.clone(), member.pid)) else { return };
        let message = format!("no trainer listens for its peers within {} s", START.as_secs());
        self.fail(
            generation,
            &place,
            Obituary { pid, cause: Some(FailureCause::Spawn { message }), last_lines: Vec::new(), log: None },
        );
        self.end_all(After::Failure);
    }

    /// Those who do not come are ended, and the others go on without them.
    fn leave_the_late(&mut self) {
        let Some(membership) = self.state.active() else { return };
        let late = membership.members.iter().filter(|member| member.peer.is_none() && !member.ended);
        let late: Vec<Place> = late.map(|member| member.place.clone()).collect();
        let generation = membership.generation;
        for place in &late {
            let trainer = super::TrainerKey { job: self.state.job.clone(), generation, place: place.clone() };
            self.commands.push(super::Command::EndTrainer { trainer, grace: super::ending::GRACE });
        }
        self.lose(late);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Command, Event, fixture as f, transition};

    #[test]
    fn a_trainer_that_counts_as_gone_and_comes_back_is_ended_while_its_generation_ends() {
        let place = f::place(1);
        let lost = f::after(f::running(2), [Event::WorkerLost { worker: place.worker.clone() }]);
        assert!(matches!(lost.life, Life::Ending { .. }), "rank 0 is still to end: {:?}", lost.life);
        let living = vec![LivingTrainer { generation: lost.generation, slot: place.slot, pid: 101, peer: f::peer(1) }];
        let back = Event::WorkerRegistered { worker: place.worker.clone(), living };
        let (next, commands) = transition(&lost, back, f::NOW);
        assert_eq!(next.events.back().map(|event| event.kind.as_str()), Some("stray"));
        let ends = |command: &Command| matches!(command, Command::EndTrainer { trainer, .. } if trainer.place == place);
        assert!(commands.iter().any(ends), "{commands:?}");
    }
}
