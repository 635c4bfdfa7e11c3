//! The one loop of the coordinator: load, decide, compare-and-put, then act.
//!
//! It turns requests, reports and time into events of jobs, stores what [`crate::job::transition`] decides, and only then
//! sends the commands to the workers' sessions. It knows no protobuf.

mod authority;
mod bucket;
mod calendar;
mod error;
mod fitness;
mod handle;
mod input;
mod jobs;
mod outside;
mod placing;
mod refusals;
mod run;
mod storage;
mod workers;

pub use self::{
    authority::Authority,
    error::RuntimeError,
    fitness::Quarantine,
    handle::{Handle, Session},
    input::{Incarnation, Opening, Report},
    outside::{Answer, Outside, ThisMachine},
    run::{Decide, Runtime, RuntimeConfig},
};
