//! Known bugs that can be switched back on.
//!
//! None of them is a switch in the product: each is put in at a seam that the product has anyway (its store, its trainers, its
//! decision function), so that no program can ever have one on, and what runs is the product's own code. They are mutants of what
//! surrounds a decision, chosen so that the effect is the bug's.

use common::time::Timestamp;
use coordinator::{
    job::{self, Command, Event, JobState},
    runtime::Decide,
};

/// What is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bug {
    /// Nothing.
    #[default]
    None,
    /// What a trainer says under an ended generation is taken as said under the newest.
    StaleGeneration,
    /// A share of a checkpoint is reported when it is written, before it is on storage.
    LatestBeforeDurable,
    /// A write is acknowledged, and its commands run, before it is durable: a crash forgets it.
    CommandBeforeStore,
    /// A leader believes that its lease lives longer than it does.
    LeaseTooLong,
    /// A restarted agent does not know the trainers of the one before it.
    DoubleLaunch,
    /// The end of a trainer is told once, and sometimes not at all.
    LostEvent,
    /// A worker that comes back and does not name a trainer has lost it, whatever it says later.
    UnknownIsDead,
    /// The store takes writes of a leader that was deposed.
    NoFence,
    /// What was spent of the budget is forgotten.
    BudgetForgotten,
}

impl Bug {
    /// All that must be found.
    pub const ALL: [Bug; 9] = [
        Bug::StaleGeneration,
        Bug::LatestBeforeDurable,
        Bug::CommandBeforeStore,
        Bug::LeaseTooLong,
        Bug::DoubleLaunch,
        Bug::LostEvent,
        Bug::UnknownIsDead,
        Bug::NoFence,
        Bug::BudgetForgotten,
    ];

    /// What decides.
    pub fn decide(self) -> Decide {
        match self {
            Bug::StaleGeneration => takes_stale_for_new,
            Bug::UnknownIsDead => takes_unknown_for_dead,
            Bug::BudgetForgotten => forgets_the_budget,
            _ => job::transition,
        }
    }
}

fn takes_stale_for_new(state: &JobState, mut event: Event, now: Timestamp) -> (JobState, Vec<Command>) {
    match &mut event {
        Event::TrainerReady { generation, .. }
        | Event::CheckpointWritten { generation, .. }
        | Event::CheckpointCommitted { generation, .. }
        | Event::StageFinished { generation, .. }
        | Event::TrainerEnded { generation, .. } => *generation = state.generation,
        _ => {}
    }
    job::transition(state, event, now)
}

fn takes_unknown_for_dead(state: &JobState, event: Event, now: Timestamp) -> (JobState, Vec<Command>) {
    let back = match &event {
        Event::WorkerRegistered { worker, living } if living.is_empty() => Some(worker.clone()),
        _ => None,
    };
    let (next, mut commands) = job::transition(state, event, now);
    let Some(worker) = back else { return (next, commands) };
    let (next, more) = job::transition(&next, Event::WorkerLost { worker }, now);
    commands.extend(more);
    (next, commands)
}

fn forgets_the_budget(state: &JobState, event: Event, now: Timestamp) -> (JobState, Vec<Command>) {
    let mut state = state.clone();
    state.counters.failures = 0;
    state.counters.no_progress = 0;
    job::transition(&state, event, now)
}
