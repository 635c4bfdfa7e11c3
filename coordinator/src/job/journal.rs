//! The events of a job, as `events` shows them.

use super::JobState;
use common::{status::Event, time::Timestamp};

/// How many events are kept.
pub const KEPT: usize = 1000;

impl JobState {
    /// Adds an event; the oldest go when there are too many.
    pub(super) fn tell(&mut self, now: Timestamp, kind: &str, message: String) {
        self.sequence += 1;
        self.events.push_back(Event {
            sequence: self.sequence,
            at: now,
            generation: self.generation,
            message,
            kind: kind.to_owned(),
        });
        while self.events.len() > KEPT {
            self.events.pop_front();
        }
    }

    /// The kept events after a number, oldest first.
    pub fn events_after(&self, sequence: u64) -> Vec<Event> {
        self.events.iter().filter(|event| event.sequence > sequence).cloned().collect()
    }
}
