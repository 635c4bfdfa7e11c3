//! A coordinator on loopback and a worker whose trainers only pretend.

mod cluster;
pub mod worker;

pub use cluster::{Cluster, recipe, share};
pub use worker::{FakeWorker, Script};
