//! When a sample comes up: its step and slot in each epoch.

use super::{Opened, OrderQuestionError, batch::shard, columns};
use crate::data::Dataset;
use common::{
    ids::{Epoch, SampleIndex},
    sampler::local_slots,
};
use serde::Serialize;

/// How many lines are printed of many: the first and the last.
const FIRST: usize = 16;
const LAST: usize = 2;

/// The samples that were meant, nearly always one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Found {
    schema: u32,
    stage: &'static str,
    steps: u64,
    global_batch: u64,
    workers: u32,
    samples: Vec<Sample>,
}

/// A sample, and when it is trained on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Sample {
    data: String,
    shard: String,
    key: String,
    index: u64,
    times: Vec<Time>,
    /// Epochs before its last time that leave it out with what did not fill a batch.
    left_out_epochs: Vec<u64>,
}

/// Once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Time {
    epoch: u64,
    /// Counted from 0.
    step: u64,
    logged_as_step: u64,
    slot: u64,
    rank: u32,
    /// Among all samples of the stage.
    position: u64,
}

impl Found {
    /// Finds the samples that `wanted` names, and when they come up.
    pub(super) fn find(opened: &Opened, wanted: &str) -> Result<Self, OrderQuestionError> {
        let not_a_sample = || OrderQuestionError::NotASample(wanted.to_owned());
        let (name, which) = wanted.split_once('/').filter(|(_, which)| !which.is_empty()).ok_or_else(not_a_sample)?;
        let Some(source) = opened.datasets.iter().position(|data| data.name() == name) else {
            let known = opened.datasets.iter().map(Dataset::name).collect::<Vec<_>>().join(", ");
            return Err(OrderQuestionError::NoDataSet { wanted: name.to_owned(), known });
        };
        let indices = indices(&opened.datasets[source], which)?;
        let samples = indices.into_iter().map(|index| sample(opened, source, index)).collect::<Result<_, _>>()?;
        Ok(Self {
            schema: 1,
            stage: "clip",
            steps: opened.steps,
            global_batch: opened.stage.global_batch,
            workers: opened.workers.0,
            samples,
        })
    }

    /// As lines for people.
    pub(super) fn text(&self, all: bool) -> String {
        self.samples.iter().map(|sample| sample.text(self.steps, all)).collect::<Vec<_>>().join("\n")
    }
}

impl Sample {
    fn text(&self, steps: u64, all: bool) -> String {
        let Self { data, shard, key, index, .. } = self;
        let mut lines = vec![format!(
            "{data}/{shard}/{key}, number {index} of its data set: {} times in {steps} steps",
            self.times.len()
        )];
        let mut table =
            vec![["epoch", "step", "the log's step", "slot", "rank", "position"].map(str::to_owned).to_vec()];
        let cells = |time: &Time| {
            let Time { epoch, step, logged_as_step, slot, rank, position } = time;
            vec![epoch, step, logged_as_step, slot, &u64::from(*rank), position]
                .into_iter()
                .map(u64::to_string)
                .collect()
        };
        table.extend(self.times.iter().map(cells));
        let table = columns(&table);
        match table.len().checked_sub(1 + FIRST + LAST) {
            Some(hidden) if hidden > 1 && !all => {
                lines.extend_from_slice(&table[..=FIRST]);
                lines.push(format!("... {hidden} more, --all shows them"));
                lines.extend_from_slice(&table[table.len() - LAST..]);
            }
            _ if self.times.is_empty() => {}
            _ => lines.extend(table),
        }
        if self.times.is_empty() {
            lines
                .push("it is left over with what fills no batch, the stage ends before, or its weight is 0".to_owned());
        } else if !self.left_out_epochs.is_empty() {
            let epochs: Vec<String> = self.left_out_epochs.iter().map(u64::to_string).collect();
            lines.push(format!("not in epoch {}: it was left over with what filled no batch", epochs.join(", ")));
        }
        lines.join("\n")
    }
}

/// The samples that a key or a number names. A key that is a number goes before the number.
fn indices(data: &Dataset, which: &str) -> Result<Vec<u64>, OrderQuestionError> {
    let samples = data.len();
    let numbered = |number: u64| match number < samples {
        true => Ok(vec![number]),
        false => Err(OrderQuestionError::NoNumber { name: data.name().to_owned(), number, samples }),
    };
    if let Some(number) = which.strip_prefix('#').and_then(|number| number.parse().ok()) {
        return numbered(number);
    }
    let mut found = Vec::new();
    for part in data.shards() {
        let in_shard = which.strip_prefix(part.stem.as_str()).and_then(|rest| rest.strip_prefix('/'));
        for index in part.samples.clone() {
            let key = data.key(SampleIndex(index))?;
            if key == which || in_shard == Some(key.as_str()) {
                found.push(index);
            }
        }
    }
    match which.parse() {
        Ok(number) if found.is_empty() => numbered(number),
        Err(_) if found.is_empty() => {
            let (name, key, skipped) = (data.name().to_owned(), which.to_owned(), data.report().skipped_total());
            Err(OrderQuestionError::NoKey { name, key, samples, skipped })
        }
        _ => Ok(found),
    }
}

fn sample(opened: &Opened, source: usize, index: u64) -> Result<Sample, OrderQuestionError> {
    let data = &opened.datasets[source];
    let (mut times, mut left_out_epochs) = (Vec::new(), Vec::new());
    let mut unseen = Vec::new();
    // An epoch takes a step or more, but for the one that it may share with the next.
    for epoch in 0..=opened.steps {
        match opened.order.find(source, SampleIndex(index), Epoch(epoch)) {
            Some((step, _)) if step.0 >= opened.steps => break,
            Some((step, slot)) => {
                left_out_epochs.append(&mut unseen);
                let rank = opened
                    .workers
                    .ranks()
                    .find(|rank| local_slots(*rank, opened.workers, opened.stage.global_batch).contains(&slot));
                times.push(Time {
                    epoch,
                    step: step.0,
                    logged_as_step: step.0 + 1,
                    slot,
                    rank: rank.expect("every slot is a rank's").0,
                    position: step.0 * opened.stage.global_batch + slot,
                });
            }
            None => unseen.push(epoch),
        }
    }
    Ok(Sample {
        data: data.name().to_owned(),
        shard: shard(data.shards(), index).stem.clone(),
        key: data.key(SampleIndex(index))?,
        index,
        times,
        left_out_epochs,
    })
}
