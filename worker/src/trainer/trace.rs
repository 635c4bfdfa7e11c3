//! A profile of some steps in the format of Chrome's trace viewer (chrome://tracing, ui.perfetto.dev): a row of sections
//! for each rank.

use super::{error::TrainerError, step::StepOutput, timeline::Timeline};
use common::ids::{Rank, Step};
use serde_json::{Value, json};
use std::{path::PathBuf, rc::Rc};

/// Steps that are not looked at: the first ones fill caches.
const WARM_UP: u64 = 3;

/// Gathers the sections of steps and writes them to a file.
#[derive(Debug)]
pub struct Trace {
    rank: Rank,
    path: PathBuf,
    /// Steps to let pass, and steps to look at after them.
    left: (u64, u64),
    first: Option<Rc<Timeline>>,
    events: Vec<Value>,
}

impl Trace {
    /// To look at `steps` steps of a rank.
    pub fn new(rank: Rank, steps: u64, path: PathBuf) -> Self {
        Self { rank, path, left: (WARM_UP, steps), first: None, events: Vec::new() }
    }

    /// A step is done. Returns the file when it is written, with the last step.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn step(&mut self, step: Step, output: &StepOutput) -> Result<Option<PathBuf>, TrainerError> {
        match &mut self.left {
            (_, 0) => return Ok(None),
            (0, left) => *left -= 1,
            (pass, _) => {
                *pass -= 1;
                return Ok(None);
            }
        }
        let offset = match &self.first {
            None => std::time::Duration::ZERO,
            Some(first) => output.timeline.began_after(first)?,
        };
        for span in &output.spans {
            self.events.push(json!({
                "name": span.section.name(), "cat": "step", "ph": "X", "pid": self.rank.0, "tid": 0,
                "ts": (offset + span.start).as_secs_f64() * 1e6, "dur": span.length.as_secs_f64() * 1e6,
                "args": { "step": step.0 },
            }));
        }
        self.first.get_or_insert_with(|| output.timeline.clone());
        if self.left.1 > 0 {
            return Ok(None);
        }
        self.write()?;
        Ok(Some(self.path.clone()))
    }

    fn write(&mut self) -> Result<(), TrainerError> {
        let rank = self.rank.0;
        let name = |kind: &str, name: &str| json!({ "name": kind, "ph": "M", "pid": rank, "tid": 0, "args": { "name": name } });
        let mut events = vec![name("process_name", &format!("rank {rank}")), name("thread_name", "sections")];
        events.append(&mut self.events);
        let text = json!({ "displayTimeUnit": "ms", "traceEvents": events }).to_string();
        std::fs::write(&self.path, text).map_err(|source| TrainerError::Io {
            operation: "write",
            path: self.path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trainer::timeline::{Section, StepTimes};
    use tch::Device;

    fn output() -> StepOutput {
        let mut timeline = Timeline::begin(Device::Cpu);
        timeline.lap(Section::DataWait);
        timeline.lap(Section::Encode);
        let spans = timeline.spans().unwrap();
        let times = StepTimes::default();
        StepOutput {
            loss: 1.0,
            grad_norm: 1.0,
            logit_scale: Some(1.0),
            logit_bias: None,
            updated: true,
            times,
            spans,
            timeline: Rc::new(timeline),
        }
    }

    #[test]
    fn the_file_holds_the_wanted_steps_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        let mut trace = Trace::new(Rank(1), 2, path.clone());
        let written: Vec<bool> = (1..=7).map(|step| trace.step(Step(step), &output()).unwrap().is_some()).collect();
        assert_eq!(written, [false, false, false, false, true, false, false]);
        let document: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let events = document["traceEvents"].as_array().unwrap();
        let spans: Vec<&Value> = events.iter().filter(|event| event["ph"] == "X").collect();
        let seen: Vec<(u64, &str)> =
            spans.iter().map(|span| (span["args"]["step"].as_u64().unwrap(), span["name"].as_str().unwrap())).collect();
        assert_eq!(seen, [(4, "data wait"), (4, "encode"), (5, "data wait"), (5, "encode")]);
        let end = |span: &Value| span["ts"].as_f64().unwrap() + span["dur"].as_f64().unwrap();
        assert!(spans.windows(2).all(|two| end(two[0]) <= two[1]["ts"].as_f64().unwrap() + 1e-6));
        assert!(spans.iter().all(|span| span["pid"] == 1));
    }
}
