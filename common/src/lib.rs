//! Vocabulary and mathematics of llm2clip, pure by default.
//!
//! Nothing here reads a clock, a file, a socket, the environment or a source of randomness, except below the feature
//! `daemon`. It knows no other crate of the workspace.

pub mod alarm;
pub mod cause;
pub mod ids;
pub mod manifest;
pub mod plan;
pub mod pulse;
pub mod recipe;
pub mod refusal;
pub mod sampler;
pub mod status;
pub mod time;

pub use recipe::settings;

#[cfg(feature = "daemon")]
pub mod daemon;
