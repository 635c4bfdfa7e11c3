//! What both daemons need and the pure part must not see: the clock, logs, signals and an orderly end, waits between tries, the
//! service manager.

pub mod allocator;
pub mod backoff;
pub mod clock;
pub mod notify;
pub mod shutdown;
pub mod telemetry;
