//! What each step measured: one JSON line a step in `OUTPUT/STAGE/metrics.jsonl`, written by the lowest rank.
//!
//! On resume the lines after the resume point are dropped: those steps are computed again, so that the file holds each
//! step once.

use super::step::NonFinite;
use common::ids::{Generation, Step};
use serde::{Deserialize, Serialize};
use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::Path,
};

/// One optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// The step, from 1: how many are committed after it.
    pub step: Step,
    /// In which membership it was computed.
    pub generation: Generation,
    /// Mean over the global batch; `null` when it is no finite number.
    #[serde(with = "number_or_null")]
    pub loss: f64,
    /// The learning rate it was taken with.
    pub learning_rate: f64,
    /// Norm of the gradient before clipping; `null` when it is no finite number.
    #[serde(with = "number_or_null")]
    pub grad_norm: f64,
    /// Why the step's update was left out; absent when it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped_nonfinite: Option<NonFinite>,
    /// exp of the logit scale after it; absent when none is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logit_scale: Option<f64>,
    /// The logit bias after it; absent when none is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logit_bias: Option<f64>,
    /// Seconds from the end of the step before to the end of this one.
    pub step_s: f64,
    /// Of these, seconds spent waiting for data.
    pub data_wait_s: f64,
    /// Of these, seconds in which communication kept computation waiting.
    #[serde(default)]
    pub exposed_communication_s: f64,
    /// Of these, seconds spent copying the checkpoint of the step before to host memory.
    pub checkpoint_stall_s: f64,
}

/// A number for which JSON has no word when it is NaN or infinite.
mod number_or_null {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        number.is_finite().then_some(number).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
    }
}

/// The file of metrics, open for appending.
#[derive(Debug)]
pub struct MetricsFile(File);

impl MetricsFile {
    /// Opens the file for a run that goes on after `step`: lines of later steps, and a torn last line, are dropped.
    pub fn open(path: &Path, step: Step) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut kept = Vec::new();
        if let Ok(file) = File::open(path) {
            for line in BufReader::new(file).lines() {
                let line = line?;
                match serde_json::from_str::<StepMetrics>(&line) {
                    Ok(metrics) if metrics.step <= step => kept.push(line),
                    _ => break,
                }
            }
        }
        let temporary = path.with_extension("jsonl.tmp");
        let mut file = File::create(&temporary)?;
        for line in kept {
            writeln!(file, "{line}")?;
        }
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        Ok(Self(OpenOptions::new().append(true).open(path)?))
    }

    /// Adds a step.
    pub fn append(&mut self, metrics: &StepMetrics) -> io::Result<()> {
        let mut line = serde_json::to_vec(metrics)?;
        line.push(b'\n');
        self.0.write_all(&line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(step: u64, loss: f64) -> StepMetrics {
        StepMetrics {
            step: Step(step),
            generation: Generation(1),
            loss,
            learning_rate: 1e-3,
            grad_norm: 1.0,
            skipped_nonfinite: None,
            logit_scale: Some(14.0),
            logit_bias: None,
            step_s: 0.1,
            data_wait_s: 0.0,
            exposed_communication_s: 0.0,
            checkpoint_stall_s: 0.0,
        }
    }

    #[test]
    fn a_resumed_run_holds_each_step_once_and_a_torn_line_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip/metrics.jsonl");
        let mut file = MetricsFile::open(&path, Step(0)).unwrap();
        let skipped = StepMetrics { skipped_nonfinite: Some(NonFinite::Loss), ..metrics(1, f64::NAN) };
        file.append(&skipped).unwrap();
        for step in 2..=4 {
            file.append(&metrics(step, 1.0 / step as f64)).unwrap();
        }
        file.0.write_all(b"{\"step\":5,\"gen").unwrap();
        let mut file = MetricsFile::open(&path, Step(2)).unwrap();
        file.append(&metrics(3, 0.1 + 0.2)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<StepMetrics> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(text.starts_with(r#"{"step":1,"generation":1,"loss":null,"#) && lines[0].loss.is_nan(), "{text}");
        assert_eq!(lines[0].skipped_nonfinite, Some(NonFinite::Loss));
        assert_eq!(lines[1..], [metrics(2, 0.5), metrics(3, 0.1 + 0.2)]);
    }
}
