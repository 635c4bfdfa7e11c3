//! Starts, watches and ends trainer processes. No tensors here, no jobs, no coordinator.
//!
//! Each trainer has one task (`trainer`), which owns its process, its socket and its log, and says what happens over
//! one bounded channel. A small record on disk lets a restarted daemon take living trainers up again.

mod connection;
pub mod frame;
pub mod hold;
mod host;
pub mod ipc;
mod log;
mod memory;
mod process;
pub mod pulse;
mod record;
pub mod sharing;
pub mod socket;
mod stacks;
mod start;
mod trainer;

pub use host::{Host, Steer};
pub use memory::Memory;
pub use process::Exit;
pub use record::TrainerRecord;
pub use start::{Assignment, Found, Settings, Supervisor, SupervisorError};
pub use trainer::{End, Handle, SupervisorEvent};
