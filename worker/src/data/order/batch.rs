//! The samples of one global batch, slot by slot.

use super::{Opened, OrderQuestionError, columns};
use crate::data::Shard;
use common::{
    ids::Step,
    sampler::{self, Draw, Repeat},
};
use serde::Serialize;
use std::ops::Range;

/// How many lines are printed of many: the first and the last.
const FIRST: usize = 12;
const LAST: usize = 4;

/// A global batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Listing {
    schema: u32,
    stage: &'static str,
    /// Counted from 0.
    step: u64,
    /// What metrics and checkpoints call the step when it is done.
    logged_as_step: u64,
    steps: u64,
    global_batch: u64,
    workers: u32,
    /// The first sample of the batch among all of the stage.
    first_position: u64,
    /// The slot that was asked for by its position.
    #[serde(skip_serializing_if = "Option::is_none")]
    slot: Option<u64>,
    samples: Vec<Row>,
}

/// A slot and what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Row {
    slot: u64,
    rank: u32,
    data: String,
    shard: String,
    key: String,
    /// Which of the data set's usable samples, from 0.
    index: u64,
    /// How often the data set was gone through before.
    epoch: u64,
    /// The caption column that is drawn for it.
    caption: String,
    /// The earlier slot that has the same sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    repeats_slot: Option<u64>,
}

impl Listing {
    /// Lists the batch of a step; `slot` is one to point at.
    pub(super) fn of(opened: &Opened, step: u64, slot: Option<u64>) -> Result<Self, OrderQuestionError> {
        let (steps, global_batch) = (opened.steps, opened.stage.global_batch);
        if step >= steps {
            return Err(OrderQuestionError::BeyondTheEnd { step, steps, samples: steps.saturating_mul(global_batch) });
        }
        let repeats = opened.order.repeats(Step(step));
        let mut samples = Vec::new();
        for rank in opened.workers.ranks() {
            let slots: Range<u64> = sampler::local_slots(rank, opened.workers, global_batch);
            let draws = opened.order.draws(Step(step), slots.clone());
            for (slot, draw) in slots.zip(draws) {
                samples.push(row(opened, (slot, rank.0), draw, &repeats)?);
            }
        }
        Ok(Self {
            schema: 1,
            stage: "clip",
            step,
            logged_as_step: step + 1,
            steps,
            global_batch,
            workers: opened.workers.0,
            first_position: step * global_batch,
            slot,
            samples,
        })
    }

    /// As lines for people: of a large batch the first and the last, and the one that was asked for.
    pub(super) fn text(&self, all: bool) -> String {
        let last = self.first_position + self.global_batch - 1;
        let mut lines = vec![format!(
            "step {} of {} (the log calls it {}): positions {} to {last}, {} rank{}",
            self.step,
            self.steps,
            self.logged_as_step,
            self.first_position,
            self.workers,
            if self.workers == 1 { "" } else { "s" }
        )];
        let shown = |number: usize| {
            let edge = number < FIRST || number + LAST >= self.samples.len();
            all || self.samples.len() <= FIRST + LAST + 1 || edge || self.slot == Some(number as u64)
        };
        let head = ["", "slot", "rank", "data set", "shard", "key", "index", "epoch", "caption"].map(str::to_owned);
        let mut table = vec![head.to_vec()];
        let mut hidden = 0;
        let mut gaps = Vec::new();
        for (number, row) in self.samples.iter().enumerate() {
            if shown(number) {
                if hidden > 0 {
                    gaps.push((table.len(), hidden));
                    hidden = 0;
                }
                table.push(row.cells(self.slot == Some(row.slot)));
            } else {
                hidden += 1;
            }
        }
        for (number, line) in columns(&table).into_iter().enumerate() {
            let gap = gaps.iter().find(|(before, _)| *before == number);
            lines.extend(gap.map(|(_, hidden)| format!("   ... {hidden} more, --all shows them")));
            lines.push(line);
        }
        lines.join("\n")
    }
}

impl Row {
    fn cells(&self, marked: bool) -> Vec<String> {
        let repeats = self.repeats_slot.map(|slot| format!(" (as in slot {slot})")).unwrap_or_default();
        vec![
            if marked { ">" } else { "" }.to_owned(),
            self.slot.to_string(),
            self.rank.to_string(),
            self.data.clone(),
            self.shard.clone(),
            self.key.clone(),
            self.index.to_string(),
            self.epoch.to_string(),
            format!("{}{repeats}", self.caption),
        ]
    }
}

fn row(opened: &Opened, (slot, rank): (u64, u32), draw: Draw, repeats: &[Repeat]) -> Result<Row, OrderQuestionError> {
    let data = &opened.datasets[draw.source];
    let weights: Vec<u32> = data.columns().iter().map(|column| column.weight).collect();
    let column = sampler::choose_caption(opened.seed, draw.source as u32, draw.index, draw.epoch, &weights);
    Ok(Row {
        slot,
        rank,
        data: data.name().to_owned(),
        shard: shard(data.shards(), draw.index.0).stem.clone(),
        key: data.key(draw.index)?,
        index: draw.index.0,
        epoch: draw.epoch.0,
        caption: data.columns()[column].name.clone(),
        repeats_slot: repeats.iter().find(|repeat| repeat.slot == slot).map(|repeat| repeat.of),
    })
}

/// The shard that has a sample.
pub(super) fn shard(shards: &[Shard], index: u64) -> &Shard {
    &shards[shards.partition_point(|shard| shard.samples.end <= index)]
}
