//! How far a long look at data is, on the error stream: rate and time left. Only people see it: where the stream is no
//! terminal, nothing is written.

use super::index::Progress;
use std::{
    io::{IsTerminal as _, Write},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How often the line is written again.
const EVERY: Duration = Duration::from_millis(200);

/// A line that is kept up to date.
pub struct Line {
    what: &'static str,
    unit: &'static str,
    started: Instant,
    /// Absent where nobody looks.
    sink: Option<Mutex<Sink>>,
}

/// Where a line is written, and when it was.
struct Sink {
    stream: Box<dyn Write + Send>,
    last: Option<Instant>,
}

impl Line {
    /// `what` is done in units called `unit`.
    pub fn new(what: &'static str, unit: &'static str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self::on(terminal.then(|| Box::new(std::io::stderr()) as Box<dyn Write + Send>), what, unit)
    }

    fn on(sink: Option<Box<dyn Write + Send>>, what: &'static str, unit: &'static str) -> Self {
        Self { what, unit, started: Instant::now(), sink: sink.map(|stream| Mutex::new(Sink { stream, last: None })) }
    }

    /// Says that `done` of `of` units are done, and `bytes` were read for them.
    pub fn show(&self, done: u64, of: u64, bytes: u64) {
        let Some(sink) = &self.sink else { return };
        let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
        let since = sink.last.unwrap_or(self.started);
        if since.elapsed() < EVERY {
            return;
        }
        sink.last = Some(Instant::now());
        let line = text(self.what, self.unit, (done, of, bytes), self.started.elapsed().as_secs_f64());
        // Progress that cannot be shown is no failure.
        let _ = write!(sink.stream, "\r\x1b[K{line}").and_then(|()| sink.stream.flush());
    }

    /// As [`Line::show`], of indexing.
    pub fn indexed(&self, progress: Progress) {
        self.show(progress.shards, progress.of, progress.read_bytes);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let Some(sink) = &self.sink else { return };
        let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
        if sink.last.is_some() {
            let _ = write!(sink.stream, "\r\x1b[K").and_then(|()| sink.stream.flush());
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
    use super::*;
    use std::sync::{Arc, PoisonError};

    /// A stream that keeps what is written.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn rate_and_time_left() {
        let line = text("indexing", "shards", (50, 200, 4_000_000_000), 2.0);
        assert_eq!(line, "indexing: 50 of 200 shards, 25 a second, 2000 MB/s, 6 s left");
    }

    #[test]
    fn a_terminal_is_shown_a_line_now_and_then_and_is_left_clean() {
        let kept = Kept::default();
        let mut line = Line::on(Some(Box::new(kept.clone())), "decoding", "samples");
        line.show(1, 9, 10);
        assert!(kept.0.lock().unwrap().is_empty(), "too early");
        line.started -= 2 * EVERY;
        line.show(2, 9, 20);
        line.show(3, 9, 30);
        drop(line);
        let written = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert!(written.starts_with("\r\x1b[Kdecoding: 2 of 9 samples, "), "{written:?}");
        assert!(written.ends_with(" s left\r\x1b[K") && !written.contains("3 of 9"), "{written:?}");
    }

    #[test]
    fn nothing_is_written_where_nobody_looks() {
        let mut line = Line::on(None, "decoding", "samples");
        line.started -= 2 * EVERY;
        line.show(2, 9, 20);
        assert!(line.sink.is_none());
    }
}
