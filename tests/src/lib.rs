//! What the scenarios share: the real programs, real files, and waiting for what happens.

mod job;
mod recipe;
mod watch;

pub use job::{Job, Step, losses};
pub use recipe::{Recipe, data};
pub use watch::wait_for;
