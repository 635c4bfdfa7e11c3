//! The trainer: one process, one device. It runs the stages of a recipe as plans tell it, and knows nothing of jobs.
//!
//! `session` is the process's life, `stages` what it does, `training` the loop of those that train, `step` an optimizer step;
//! `link` is its end of the agent's socket.

pub mod agreement;
pub mod ahead;
pub mod buckets;
pub mod commits;
pub mod context;
pub mod digest;
mod ema;
pub mod error;
pub mod failpoints;
mod folders;
mod held;
mod interrupt;
pub mod layout;
pub mod link;
pub mod metrics;
pub mod observed;
pub mod parameters;
pub mod pulse;
pub mod reducer;
pub mod schedule;
pub mod session;
pub mod shards;
pub mod stages;
pub mod step;
pub mod timeline;
pub mod trace;
pub mod trained;
pub mod training;
