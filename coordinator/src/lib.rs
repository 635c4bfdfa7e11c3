//! The coordinator of llm2clip: job state, rendezvous, store, API, and the command line. It never links libtorch.
//!
//! Pure: `job`, `rendezvous`. Shell: `runtime`, `election`, `store`. Edge: `api`, `cli`.

pub mod api;
pub mod cli;
pub mod election;
pub mod job;
mod programs;
pub mod rendezvous;
pub mod runtime;
pub mod store;
