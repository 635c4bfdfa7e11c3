//! A training that goes on for long while any process of the cluster may be killed or stopped at any time: who is next, what stands
//! again, and what it cost.

mod account;
mod blow;
mod ground;
mod metrics;
mod run;

pub use run::Soak;
