//! What steps measured: JSON lines that the lowest rank writes. `OUTPUT/STAGE/metrics.jsonl` has one a step, and
//! `clip/eval.jsonl` one a data set of every evaluation on the way.
//!
//! On resume the lines after the resume point are dropped: those steps are computed again, so that a file holds each step
//! once.

use super::step::NonFinite;
use common::{
    ids::{Generation, Step},
    status::Evaluated,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    marker::PhantomData,
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
    /// Not of these: seconds of an evaluation between the step before and this one; absent when there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation_s: Option<f64>,
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

/// What a line of such a file is of.
pub trait OfStep {
    /// The step.
    fn step(&self) -> Step;
}

impl OfStep for StepMetrics {
    fn step(&self) -> Step {
        self.step
    }
}

impl OfStep for Evaluated {
    fn step(&self) -> Step {
        self.step
    }
}

/// How many bytes of lines are kept for storage that takes none: of some ten thousand steps.
const KEPT_BYTES: usize = 4 << 20;

/// A file of lines of `T`, open for appending.
#[derive(Debug)]
pub struct StepLines<T> {
    file: File,
    /// How much of it is whole lines.
    whole: u64,
    /// Lines that storage has not taken yet.
    waiting: Vec<u8>,
    of: PhantomData<T>,
}

impl<T: OfStep + Serialize + DeserializeOwned> StepLines<T> {
    /// Opens the file for a run that goes on after `step`: lines of later steps, and a torn last line, are dropped. Returns
    /// the last of those that are kept, too.
    pub fn open(path: &Path, step: Step) -> io::Result<(Self, Option<T>)> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let (mut kept, mut last) = (Vec::new(), None);
        if let Ok(file) = File::open(path) {
            for line in BufReader::new(file).lines() {
                let line = line?;
                match serde_json::from_str::<T>(&line) {
                    Ok(of) if of.step() <= step => last = Some(of),
                    _ => break,
                }
                kept.push(line);
            }
        }
        let temporary = path.with_extension("jsonl.tmp");
        let mut file = File::create(&temporary)?;
        for line in kept {
            writeln!(file, "{line}")?;
        }
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        let file = OpenOptions::new().append(true).open(path)?;
        let whole = file.metadata()?.len();
        Ok((Self { file, whole, waiting: Vec::new(), of: PhantomData }, last))
    }

    /// Adds lines, in one piece. Those that storage does not take (it is full, or fails) are kept and come with the next ones: no
    /// training ends for them. Only when too many are kept, the newest are left out.
    ///
    /// # Errors
    /// When a line is no JSON.
    pub fn append(&mut self, lines: &[T]) -> io::Result<()> {
        let before = self.waiting.len();
        if before < KEPT_BYTES {
            for line in lines {
                serde_json::to_writer(&mut self.waiting, line)?;
                self.waiting.push(b'\n');
            }
        }
        match self.file.write_all(&self.waiting) {
            Ok(()) => {
                if before > 0 {
                    tracing::info!(bytes = self.waiting.len(), "storage takes lines of metrics again");
                }
                self.whole += self.waiting.len() as u64;
                self.waiting.clear();
            }
            Err(error) => {
                if before == 0 {
                    tracing::error!(%error, "storage takes no lines of metrics: they are kept in memory and tried again");
                }
                // Of a half written one nothing is to be left.
                let _ = self.file.set_len(self.whole);
            }
        }
        Ok(())
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
            evaluation_s: None,
        }
    }

    #[test]
    fn a_resumed_run_holds_each_step_once_and_a_torn_line_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip/metrics.jsonl");
        let open = |step| StepLines::<StepMetrics>::open(&path, Step(step)).unwrap();
        let (mut file, last) = open(0);
        assert_eq!(last, None);
        let skipped = StepMetrics { skipped_nonfinite: Some(NonFinite::Loss), ..metrics(1, f64::NAN) };
        file.append(&[skipped]).unwrap();
        for step in 2..=4 {
            file.append(&[metrics(step, 1.0 / step as f64)]).unwrap();
        }
        file.file.write_all(b"{\"step\":5,\"gen").unwrap();
        let (mut file, last) = open(2);
        assert_eq!(last, Some(metrics(2, 0.5)));
        file.append(&[metrics(3, 0.1 + 0.2)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<StepMetrics> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(text.starts_with(r#"{"step":1,"generation":1,"loss":null,"#) && lines[0].loss.is_nan(), "{text}");
        assert_eq!(lines[0].skipped_nonfinite, Some(NonFinite::Loss));
        assert_eq!(lines[1..], [metrics(2, 0.5), metrics(3, 0.1 + 0.2)]);
    }

    #[test]
    fn lines_that_storage_does_not_take_come_with_the_next_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let (mut file, _) = StepLines::<StepMetrics>::open(&path, Step(0)).unwrap();
        file.append(&[metrics(1, 0.5)]).unwrap();
        // No space is ever left on this device.
        let good = std::mem::replace(&mut file.file, OpenOptions::new().append(true).open("/dev/full").unwrap());
        file.append(&[metrics(2, 0.5)]).unwrap();
        file.append(&[metrics(3, 0.5)]).unwrap();
        file.file = good;
        file.append(&[metrics(4, 0.5)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let steps: Vec<u64> =
            text.lines().map(|line| serde_json::from_str::<StepMetrics>(line).unwrap().step.0).collect();
        assert_eq!(steps, [1, 2, 3, 4]);
    }
}
