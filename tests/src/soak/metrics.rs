//! The steps of a training, as its metrics grow.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::PathBuf,
    time::{Duration, Instant},
};

/// Reads on where it stopped.
pub(super) struct Metrics {
    path: PathBuf,
    read: u64,
    rest: Vec<u8>,
    /// The newest step in the file.
    pub(super) newest: u64,
    /// When it came.
    pub(super) since: Instant,
    /// The longest time between two looks that saw a new step, since this was last taken.
    longest: Duration,
    /// How many steps were computed again: a training that begins again at a checkpoint cuts its metrics there.
    pub(super) again: u64,
}

impl Metrics {
    pub(super) fn of(path: PathBuf) -> Self {
        let since = Instant::now();
        Self { path, read: 0, rest: Vec::new(), newest: 0, since, longest: Duration::ZERO, again: 0 }
    }

    /// Reads what is new.
    pub(super) fn look(&mut self) {
        let Ok(mut file) = File::open(&self.path) else { return };
        let before = self.newest;
        if file.metadata().unwrap().len() < self.read {
            (self.read, self.newest) = (0, 0);
            self.rest.clear();
        }
        file.seek(SeekFrom::Start(self.read)).unwrap();
        self.read += file.read_to_end(&mut self.rest).unwrap() as u64;
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
            self.newest = self.newest.max(line["step"].as_u64().unwrap());
        }
        self.again += before.saturating_sub(self.newest);
        if self.newest != before {
            self.longest = self.longest.max(self.since.elapsed());
            self.since = Instant::now();
        }
    }

    /// The longest time without a new step since this was last asked.
    pub(super) fn longest(&mut self) -> Duration {
        std::mem::take(&mut self.longest).max(self.since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, io::Write as _};

    #[test]
    fn lines_are_read_once_half_ones_later_and_a_file_that_was_cut_is_read_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::of(path.clone());
        let mut check = |text: &str, newest: u64, again: u64| {
            File::options().append(true).create(true).open(&path).unwrap().write_all(text.as_bytes()).unwrap();
            metrics.look();
            assert_eq!((metrics.newest, metrics.again), (newest, again), "{text}");
        };
        check("", 0, 0);
        check("{\"step\":1}\n{\"step\":2}\n{\"st", 2, 0);
        check("ep\":3}\n", 3, 0);
        fs::write(&path, "{\"step\":1}\n").unwrap();
        check("", 1, 2);
        check("{\"step\":2}\n", 2, 2);
    }
}
