//! How far a long look at data is, on the error stream: rate and time left.

use super::index::Progress;
use std::{
    io::{IsTerminal as _, Write as _},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How often a terminal's line is written again.
const TERMINAL: Duration = Duration::from_millis(200);
/// How often a line is written to a file.
const FILE: Duration = Duration::from_secs(10);

/// A line that is kept up to date.
pub struct Line {
    what: &'static str,
    unit: &'static str,
    started: Instant,
    last: Mutex<Instant>,
    terminal: bool,
}

impl Line {
    /// `what` is done in units called `unit`.
    pub fn new(what: &'static str, unit: &'static str) -> Self {
        let started = Instant::now();
        Self { what, unit, started, last: Mutex::new(started), terminal: std::io::stderr().is_terminal() }
    }

    /// Says that `done` of `of` units are done, and `bytes` were read for them.
    pub fn show(&self, done: u64, of: u64, bytes: u64) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() < if self.terminal { TERMINAL } else { FILE } {
            return;
        }
        *last = Instant::now();
        let seconds = self.started.elapsed().as_secs_f64();
        let line = text(self.what, self.unit, (done, of, bytes), seconds);
        // Progress that cannot be shown is no failure.
        let _ = if self.terminal {
            write!(std::io::stderr(), "\r\x1b[K{line}")
        } else {
            writeln!(std::io::stderr(), "{line}")
        };
    }

    /// As [`Line::show`], of indexing.
    pub fn indexed(&self, progress: Progress) {
        self.show(progress.shards, progress.of, progress.read_bytes);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn text(what: &str, unit: &str, (done, of, bytes): (u64, u64, u64), seconds: f64) -> String {
    let left = seconds / done.max(1) as f64 * of.saturating_sub(done) as f64;
    let rate = done as f64 / seconds.max(1e-9);
    let megabytes = bytes as f64 / 1e6 / seconds.max(1e-9);
    format!("{what}: {done} of {of} {unit}, {rate:.0} a second, {megabytes:.0} MB/s, {left:.0} s left")
}

#[cfg(test)]
mod tests {
    #[test]
    fn rate_and_time_left() {
        let line = super::text("indexing", "shards", (50, 200, 4_000_000_000), 2.0);
        assert_eq!(line, "indexing: 50 of 200 shards, 25 a second, 2000 MB/s, 6 s left");
    }
}
