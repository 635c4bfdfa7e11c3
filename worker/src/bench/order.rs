//! What a resume costs of a data set of any size: seconds to the first global batch, and memory, at several positions.

use super::median;
use crate::{
    data::BatchRequest,
    torch::memory::{peak_bytes, reset_peak},
};
use anyhow::Context as _;
use common::{
    ids::Step,
    sampler::{Order, OrderSource, OrderSpec, Policy, Segment, Shuffle, Tail},
};
use serde_json::{Value, json};
use std::time::Instant;
use tch::Device;

/// The smaller data set has this share of the larger one's samples.
const SMALLER: u64 = 400;

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct OrderArgs {
    /// Samples of the larger data set, which is shuffled in blocks; a smaller one is mixed in
    #[arg(long, default_value_t = 1_240_000_000)]
    pub samples: u64,
    /// Pairs a step
    #[arg(long, default_value_t = 32_768)]
    pub global_batch: u64,
    /// Measured resumes at each position
    #[arg(long, default_value_t = 5)]
    pub repeats: u64,
    /// One JSON document on stdout (always so)
    #[arg(short, long, default_value = "json", value_parser = ["json"])]
    pub output: String,
}

/// Measures, and returns the figures. No data are read: what a sample's index says is another cost.
pub fn run(args: &OrderArgs) -> anyhow::Result<Value> {
    anyhow::ensure!(args.global_batch > 0 && args.repeats > 0, "--global-batch and --repeats must be 1 or more");
    let smaller = (args.samples / SMALLER).max(2 * args.global_batch);
    let source = |name: &str, samples, shuffle| OrderSource { name: name.to_owned(), samples, shuffle };
    let spec = OrderSpec {
        seed: 1,
        global_batch: args.global_batch,
        sources: vec![
            source("larger", args.samples, Shuffle::Blocks { block: 128, window: 8 * args.global_batch }),
            source("smaller", smaller, Shuffle::Full),
        ],
        policy: Policy::Mixed,
        tail: Tail::Carry,
        segments: vec![Segment::first(Some(vec![9, 1]))],
    };
    let of_epoch = args.samples / args.global_batch;
    let positions = [("start", 0), ("half of an epoch", of_epoch / 2), ("five epochs", 5 * of_epoch)];
    let measured = positions.into_iter().map(|(name, step)| {
        let (seconds, bytes) = resume(&spec, step, args.repeats)?;
        Ok(json!({
            "at": name, "step": step, "position": step * args.global_batch,
            "first_batch_s": median(&seconds), "planning_memory_bytes": bytes,
        }))
    });
    let measured = measured.collect::<anyhow::Result<Vec<_>>>()?;
    Ok(json!({
        "schema": 1, "bench": "order", "samples": args.samples + smaller, "global_batch": args.global_batch,
        "repeats": args.repeats, "resumes": measured,
    }))
}

/// Seconds from nothing to the names of a global batch's samples, and what the process grew by, the batch included.
fn resume(spec: &OrderSpec, step: u64, repeats: u64) -> anyhow::Result<(Vec<f64>, u64)> {
    let resident = || peak_bytes(Device::Cpu).context("the system does not tell how much memory a process has");
    let mut seconds = Vec::new();
    let mut grown = 0;
    for _ in 0..repeats {
        reset_peak(Device::Cpu);
        let before = resident()?;
        let began = Instant::now();
        let order = Order::new(spec.clone())?;
        let batch = BatchRequest::of_step(&order, Step(step), 0..spec.global_batch);
        let repeats = order.repeats(Step(step));
        seconds.push(began.elapsed().as_secs_f64());
        grown = grown.max(resident()? - before);
        anyhow::ensure!(batch.samples.len() as u64 == spec.global_batch && repeats.len() < batch.samples.len());
    }
    Ok((seconds, grown))
}
