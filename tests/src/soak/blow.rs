//! Who is hit next, and how: drawn from a seed, nobody protected.

use super::ground::{COORDINATORS, MACHINES};
use crate::Rng;
use std::{fmt, time::Duration};

/// What a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Computes.
    Trainer,
    /// The parent of a trainer, which keeps how it ended.
    Holder,
    /// The worker's daemon.
    Worker,
    /// One of two, of which one leads.
    Coordinator,
    /// A member of the store.
    Etcd,
}

/// A process of a machine, whichever it is at the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seat {
    /// What it is.
    pub(super) kind: Kind,
    /// Where, from 0.
    pub(super) machine: usize,
}

/// What happens to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blow {
    /// SIGKILL to one process.
    Kill(Seat),
    /// SIGSTOP to one process, and SIGCONT after this time.
    Stop(Seat, Duration),
    /// SIGKILL to all processes of a machine.
    Machine(usize),
}

impl Blow {
    /// The next one.
    pub(super) fn draw(rng: &mut Rng) -> Self {
        let (how, seat) = (rng.below(10), *rng.pick(&seats()));
        let (machine, pause) = (rng.below(MACHINES as u64) as usize, rng.millis(1_000, 6_000));
        match how {
            0 => Self::Machine(machine),
            1 | 2 => Self::Stop(seat, pause),
            _ => Self::Kill(seat),
        }
    }

    /// Under what it is counted.
    pub(super) fn class(self) -> String {
        match self {
            Self::Kill(seat) => format!("kill {}", seat.kind),
            Self::Stop(seat, _) => format!("stop {}", seat.kind),
            Self::Machine(_) => "kill machine".to_owned(),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trainer => "trainer",
            Self::Holder => "holder",
            Self::Worker => "worker",
            Self::Coordinator => "coordinator",
            Self::Etcd => "etcd",
        })
    }
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of machine {}", self.kind, self.machine)
    }
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(seat) => write!(f, "SIGKILL: {seat}"),
            Self::Stop(seat, pause) => write!(f, "SIGSTOP for {:.1} s: {seat}", pause.as_secs_f64()),
            Self::Machine(machine) => write!(f, "SIGKILL: all of machine {machine}"),
        }
    }
}

/// Every process that there is.
pub(super) fn seats() -> Vec<Seat> {
    let on = |kind, machines| (0..machines).map(move |machine| Seat { kind, machine });
    let everywhere = [Kind::Trainer, Kind::Holder, Kind::Worker, Kind::Etcd];
    everywhere.into_iter().flat_map(|kind| on(kind, MACHINES)).chain(on(Kind::Coordinator, COORDINATORS)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn everybody_is_hit_some_time_and_a_seed_is_one_history() {
        let all = |seed| {
            let mut rng = Rng::new(seed, "who");
            (0..1_000).map(|_| Blow::draw(&mut rng)).collect::<Vec<_>>()
        };
        assert_eq!(all(1), all(1));
        let killed: BTreeSet<Seat> =
            all(1).into_iter().filter_map(|blow| if let Blow::Kill(seat) = blow { Some(seat) } else { None }).collect();
        assert_eq!(killed, seats().into_iter().collect());
        let classes: BTreeSet<String> = all(1).into_iter().map(Blow::class).collect();
        assert_eq!(classes.len(), 11, "{classes:?}");
    }
}
