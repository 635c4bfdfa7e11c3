//! What the scenarios share: the real programs, real files, and waiting for what happens.

#![allow(clippy::unwrap_used, reason = "a scenario that cannot be set up has failed")]

mod bucket;
mod cluster;
mod etcd;
mod job;
mod machines;
mod manager;
mod recipe;
mod rng;
mod soak;
#[path = "../../worker/stand_in/compile.rs"]
pub mod stand_in;
mod tensors;
mod watch;
mod weather;

pub use bucket::Bucket;
pub use cluster::{Cluster, signal, until};
pub use job::{Job, Step, family, losses};
pub use machines::{Cable, Machines, Setting};
pub use manager::Manager;
pub use recipe::{Recipe, data, model, tuning};
pub use rng::Rng;
pub use soak::Soak;
pub use tensors::tensors;
pub use watch::{wait_for, wait_for_line};
pub use weather::Weather;
