//! A place where a trainer can run.

use common::ids::{Slot, WorkerId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One slot of one worker. Ranks are given out in the order of places.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The machine.
    pub worker: WorkerId,
    /// Its slot.
    pub slot: Slot,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} slot {}", self.worker, self.slot)
    }
}
