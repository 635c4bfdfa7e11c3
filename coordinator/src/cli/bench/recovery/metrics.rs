//! The metrics of the training that is measured, read as they grow: each line once, so that looking often costs the training nothing.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::PathBuf,
};

/// What they say so far.
#[derive(Debug)]
pub(super) struct Metrics {
    path: PathBuf,
    /// How much of the file was read.
    read: u64,
    /// How many lines there are of each step.
    lines: BTreeMap<u64, u64>,
    /// What steps took, in seconds.
    pub(super) step_s: Vec<f64>,
}

/// How many lines there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// The newest step.
    pub(super) newest: u64,
    /// Lines of a step that has one.
    pub(super) twice: u64,
    /// Steps before the newest without a line.
    pub(super) missing: u64,
}

impl Metrics {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, read: 0, lines: BTreeMap::new(), step_s: Vec::new() }
    }

    /// Reads what is new; a line that is being written is left for the next time.
    pub(super) fn count(&mut self) -> Counted {
        // It is not there before the first step.
        let text = self.more().unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        self.read += whole.len() as u64;
        for line in whole.lines() {
            let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else { continue };
            *self.lines.entry(line["step"].as_u64().unwrap_or_default()).or_default() += 1;
            self.step_s.extend(line["step_s"].as_f64());
        }
        let newest = self.lines.keys().next_back().copied().unwrap_or_default();
        let twice = self.lines.values().map(|count| count - 1).sum();
        Counted { newest, twice, missing: newest - self.lines.len() as u64 }
    }

    fn more(&self) -> io::Result<String> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn each_line_is_read_once_and_one_that_is_not_whole_waits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::new(path.clone());
        let mut check = |text: &str, (newest, twice, missing): (u64, u64, u64)| {
            let all = fs::read_to_string(&path).unwrap_or_default() + text;
            fs::write(&path, all).unwrap();
            assert_eq!(metrics.count(), Counted { newest, twice, missing });
        };
        check("", (0, 0, 0));
        check("{\"step\": 1, \"step_s\": 0.5}\n{\"step\": 2}\n{\"st", (2, 0, 0));
        check("ep\": 5}\n", (5, 0, 2));
        check("{\"step\": 5}\n", (5, 1, 2));
        assert_eq!(metrics.step_s, [0.5]);
    }
}
