//! Storage against a real S3 server, with and without something in between that breaks.

mod faults;
mod objects;
pub mod proxy;
pub mod server;
mod uploads;

use super::{Limits, Location};
use std::time::Duration;

/// As in use, but for what nothing in a test is worth waiting for.
pub fn quick() -> Limits {
    Limits { deadline: Duration::from_secs(20), first_wait: Duration::from_millis(10), ..Limits::default() }
}

/// Small blocks and short waits, so that a test sees several of each.
fn limits() -> Limits {
    Limits {
        requests: 8,
        block: 1000,
        cache: 1 << 20,
        ahead: 0,
        copy: 4 << 20,
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
