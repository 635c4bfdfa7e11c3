//! Storage against a real S3 server, with and without something in between that breaks.

mod faults;
mod objects;
pub mod proxy;
pub mod server;

use super::{Limits, Location};
use std::time::Duration;

/// Small blocks and short waits, so that a test sees several of each.
fn limits() -> Limits {
    Limits {
        requests: 8,
        block: 1000,
        cache: 1 << 20,
        ahead: 0,
        attempt: Duration::from_secs(5),
        deadline: Duration::from_secs(20),
        first_wait: Duration::from_millis(10),
    }
}

fn at(url: &str) -> Location {
    Location::parse(url).unwrap()
}

/// Bytes of which no two blocks are alike.
fn contents(length: usize) -> Vec<u8> {
    (0..length as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}
