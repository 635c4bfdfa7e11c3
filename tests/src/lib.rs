//! What the scenarios share: the real programs, real files, and waiting for what happens.

#![allow(clippy::unwrap_used, reason = "a scenario that cannot be set up has failed")]

mod cluster;
mod job;
mod machines;
mod recipe;
mod watch;

pub use cluster::{Cluster, signal, until};
pub use job::{Job, Step, family, losses};
pub use machines::{Cable, Machines};
pub use recipe::{Recipe, data};
pub use watch::{wait_for, wait_for_line};
