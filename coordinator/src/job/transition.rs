//! The decision: what an event makes of a job.

use super::{Command, Event, JobState, Life, Membership, check};
use common::{ids::Generation, time::Timestamp};

/// The job after `event`, and what is to be done once that is stored. An event that [`check`] refuses changes nothing.
pub fn transition(state: &JobState, event: Event, now: Timestamp) -> (JobState, Vec<Command>) {
    if check(state, &event).is_err() {
        return (state.clone(), Vec::new());
    }
    let mut step = Step { state: state.clone(), commands: Vec::new(), now };
    step.apply(event);
    if step.state != *state {
        step.state.updated = now;
    }
    (step.state, step.commands)
}

/// A transition under way. Its methods stand in the files of their subjects.
pub(super) struct Step {
    pub(super) state: JobState,
    pub(super) commands: Vec<Command>,
    pub(super) now: Timestamp,
}

impl Step {
    fn apply(&mut self, event: Event) {
        match event {
            Event::Tick => self.tick(),
            Event::Capacity { free } => self.capacity(&free),
            Event::TrainerReady { generation, place, pid, peer } => self.ready(generation, &place, pid, peer),
            Event::Progress { place, progress } => self.progress(&place, *progress),
            Event::PeersLost { generation, rank, step, message } => self.apart(generation, rank, step, message),
            Event::Pulse { place, pulse } => self.pulse(&place, *pulse),
            Event::CheckpointWritten { generation, rank, step, share } => self.written(generation, rank, step, *share),
            Event::StorageTrouble { generation, trouble } => self.troubled(generation, *trouble),
            Event::CheckpointCommitted { generation, step } => self.committed(generation, step),
            Event::CheckpointFound { step } => self.found(step),
            Event::StageFinished { generation, rank, summary, stopped } => {
                self.finished(generation, rank, summary, stopped);
            }
            Event::TrainerEnded { generation, place, pid, cause, last_lines, log } => {
                self.ended(generation, &place, super::ending::Obituary { pid, cause, last_lines, log });
            }
            Event::WorkerRegistered { worker, living } => self.registered(&worker, &living),
            Event::WorkerLost { worker } => self.worker_lost(&worker),
            Event::WorkerLeaves { worker, why } => self.leave(&worker, why),
            Event::Stop => self.stop(),
            Event::Resume(resume) => self.resume(resume),
            Event::Abandoned => self.abandoned(),
        }
    }

    /// Adds an event to the job's journal.
    pub(super) fn tell(&mut self, kind: &str, message: String) {
        self.state.tell(self.now, kind, message);
    }

    /// The newest membership if the report is of it and its trainers live; else the report is counted as refused.
    pub(super) fn current(&mut self, generation: Generation) -> Option<&mut Membership> {
        if self.state.active().is_none_or(|membership| membership.generation != generation) {
            self.state.counters.refused += 1;
            if self.state.counters.refused == 1 {
                self.tell("refused", format!("refused a report of generation {generation}: it is over"));
            }
            return None;
        }
        self.state.membership.as_mut()
    }

    /// Enters another part of the membership's life.
    pub(super) fn enter(&mut self, life: Life) {
        self.state.life = life;
        if let Some(membership) = self.state.membership.as_mut() {
            membership.since = self.now;
        }
    }
}
