//! What a job does next, and why it waits: `transition(state, event, now) -> (state, commands)`.
//!
//! Pure: it knows no store, session, clock or file. The state is stored before its commands run; commands are
//! idempotent; [`owed`] says what to send again after a restart.

mod alarm;
mod budget;
mod checkpoints;
mod command;
mod elastic;
mod ending;
mod event;
mod generation;
mod hang;
mod journal;
mod leaving;
mod loaded;
mod membership;
mod owed;
mod record;
mod recovery;
mod reports;
mod requests;
mod state;
mod status;
mod straggler;
mod transition;

#[cfg(test)]
mod detected;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod table;
#[cfg(test)]
mod table_elastic;
#[cfg(test)]
mod table_storage;

pub use self::{
    command::{Command, TrainerKey},
    event::{Event, LivingTrainer, Resume},
    leaving::Leaves,
    loaded::loaded,
    membership::{Apart, Finish, Member, Membership},
    owed::{owed, recover},
    record::{RecordError, decode, encode},
    requests::{Refused, check},
    state::{After, Counters, Intent, JobState, Life, StageState, Submission},
    status::status,
    transition::transition,
};
