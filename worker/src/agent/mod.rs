//! The worker's daemon: one session to the coordinator, the trainers of one machine, and nothing that computes.
//!
//! `state` decides, purely; `daemon` is the one loop around it; the wire stops at `session` and `wire`. The supervisor
//! starts and ends processes.

pub mod config;
pub mod daemon;
mod identity;
mod inventory;
mod message;
mod network;
mod session;
mod state;
mod wire;

pub use config::{Config, ConfigError, Options};
pub use daemon::{AgentError, Leaving, Surroundings, run, run_in};
pub use identity::Identity;
pub use inventory::Machine;
pub use network::Network;
