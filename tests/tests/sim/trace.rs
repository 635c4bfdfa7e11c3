//! What happened in a simulation: the last events for people, a digest of all of them for the test of determinism.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher as _},
    time::Duration,
};

/// How many of the last events are kept.
const KEPT: usize = 60;

/// The events.
#[derive(Debug)]
pub struct Trace {
    hasher: DefaultHasher,
    last: VecDeque<String>,
    /// Whether each event is printed as it happens.
    aloud: bool,
}

impl Trace {
    pub fn new(aloud: bool) -> Self {
        Self { hasher: DefaultHasher::new(), last: VecDeque::new(), aloud }
    }

    pub fn add(&mut self, now: Duration, event: &str) {
        (now.as_micros(), event).hash(&mut self.hasher);
        let line = format!("{:9.2} s  {event}", now.as_secs_f64());
        if self.aloud {
            eprintln!("{line}");
        }
        if self.last.len() >= KEPT {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// The digest of all events and their times.
    pub fn digest(&self) -> u64 {
        self.hasher.finish()
    }

    /// The last events, one a line.
    pub fn last(&self) -> String {
        Vec::from_iter(self.last.iter().map(String::as_str)).join("\n")
    }
}
