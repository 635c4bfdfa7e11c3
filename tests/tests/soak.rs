//! A training over three machines, a real etcd of three members and two coordinators goes on while a process after the other is
//! killed or stopped: trainers and what holds them, daemons, either coordinator, members of etcd, all of a machine.
//!
//! `make soak FAILURES=200 MEAN_S=10 SEED=1` runs so many; here it is a short one, of a seed whose blows fall
//! close together: a trainer, both coordinators, etcd, a whole machine.

use std::time::Duration;
use tests::Soak;

/// What a variable says, or this.
fn number(name: &str, usual: u64) -> u64 {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty());
    text.map_or(usual, |text| text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

#[test]
fn any_process_is_lost_again_and_again_and_every_loss_is_as_undisturbed() {
    let failures = u32::try_from(number("FAILURES", 8)).expect("a number of failures");
    let mean = Duration::from_secs(number("MEAN_S", 4));
    Soak { failures, mean, seed: number("SEED", 313) }.run();
}
