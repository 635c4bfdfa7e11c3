//! What may not have arrived, and is sent again.

use super::{Command, JobState, Life, Member, checkpoints, ending, generation, hang, leaving};
use common::ids::WorkerId;

/// Every order that the job's state implies and nobody confirmed.
pub fn recover(state: &JobState) -> Vec<Command> {
    match state.life {
        Life::Starting => starts(state),
        Life::Running => {
            let plans = generation::plans(state).into_iter();
            let orders = plans.chain(checkpoints::commits(state)).chain(starts(state));
            orders.chain(hang::ends(state)).chain(leaving::stops(state)).collect()
        }
        Life::Stopping => {
            let plans = generation::plans(state).into_iter();
            plans.chain(checkpoints::commits(state)).chain(stops(state)).chain(hang::ends(state)).collect()
        }
        Life::Ending { .. } => ending::ends(state),
        Life::Queued { .. }
        | Life::Regrouping { .. }
        | Life::BackOff { .. }
        | Life::Stopped
        | Life::Succeeded
        | Life::Failed { .. } => Vec::new(),
    }
}

/// The part of [`recover`] that is for one worker.
pub fn owed(state: &JobState, worker: &WorkerId) -> Vec<Command> {
    recover(state).into_iter().filter(|command| command.trainer().place.worker == *worker).collect()
}

/// The orders to start that were not answered.
fn starts(state: &JobState) -> Vec<Command> {
    let waits = |member: &&Member| member.peer.is_none() && !member.ended;
    let Some(membership) = state.active() else { return Vec::new() };
    let start = |member: &Member| Command::StartTrainer {
        trainer: membership.key(&state.job, member),
        output: state.recipe.output.clone(),
    };
    membership.everyone().filter(waits).map(start).collect()
}

/// The orders to stop that were not answered.
pub(super) fn stops(state: &JobState) -> Vec<Command> {
    let works = |member: &&Member| member.finished.is_none() && !member.ended;
    let Some(membership) = state.active() else { return Vec::new() };
    let stop = |member: &Member| Command::StopTrainer { trainer: membership.key(&state.job, member) };
    membership.members.iter().filter(works).map(stop).collect()
}
