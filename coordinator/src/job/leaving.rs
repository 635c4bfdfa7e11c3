//! A machine that is to be left while it still works: the job writes a checkpoint there and goes on elsewhere, and no failure is
//! counted.

use super::{Command, JobState, Life, transition::Step};
use common::ids::WorkerId;

/// Why a worker is to be left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaves {
    /// Its machine is being taken away.
    Preempted,
    /// A user wants it free.
    Drained,
    /// Too many trainers were lost on it.
    Quarantined,
}

impl Step {
    /// Has all ranks stop with a checkpoint as soon as they have their plans, if a rank is on this worker.
    pub(super) fn leave(&mut self, worker: &WorkerId, why: Leaves) {
        if !matches!(self.state.life, Life::Starting | Life::Running) {
            return;
        }
        let Some(membership) = self.state.membership.as_mut() else { return };
        let here = membership.members.iter().any(|member| member.place.worker == *worker && !member.ended);
        if !here || std::mem::replace(&mut membership.leaving, true) {
            return;
        }
        let (kind, reason) = match why {
            Leaves::Preempted => ("preempted", "is being taken away"),
            Leaves::Drained => ("drained", "is drained"),
            Leaves::Quarantined => ("quarantine", "is in quarantine: too many trainers were lost there"),
        };
        self.state.counters.preemptions += u32::from(why == Leaves::Preempted);
        self.tell(kind, format!("worker {worker} {reason}; the job writes a checkpoint and goes on elsewhere"));
        self.commands.extend(stops(&self.state));
    }
}

/// The orders to stop that are owed because a machine is to be left.
pub(super) fn stops(state: &JobState) -> Vec<Command> {
    let leaves = matches!(state.life, Life::Running) && state.active().is_some_and(|membership| membership.leaving);
    if leaves { super::owed::stops(state) } else { Vec::new() }
}
