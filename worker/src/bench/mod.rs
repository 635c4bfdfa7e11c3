//! Figures on the user's own machine, as JSON: warm-up, repeats, medians; every field is named with its unit.

pub mod checkpoint;
pub mod collective;
pub mod contrast;
pub mod embed;
mod llm;
pub mod loader;
pub mod loss;
pub mod order;
pub mod step;
mod steps;
pub mod text;

use crate::torch::{cuda::DeviceChoice, memory, peak};
use anyhow::Context as _;
use serde_json::Value;

/// What can be measured.
#[derive(Debug, clap::Subcommand)]
pub enum BenchCommand {
    /// Images a second from tars to normalised pixels
    Loader(loader::LoaderArgs),
    /// Bytes and tokens a second from texts to token ids
    Text(text::TextArgs),
    /// Seconds and memory until a resumed job knows its first global batch, for a data set of any size
    Order(order::OrderArgs),
    /// Seconds of an optimizer step of a vision tower
    Step(step::StepArgs),
    /// Texts and tokens a second of an LLM that reads captions
    Embed(embed::EmbedArgs),
    /// Seconds of an optimizer step of an LLM that is tuned on pairs of captions
    Contrast(contrast::ContrastArgs),
    /// Seconds of the streamed contrastive loss beside the full matrix
    Loss(loss::LossArgs),
    /// Bandwidth of all-reduce and all-gather between two processes on this machine
    Collective(collective::CollectiveArgs),
    /// How long training stands still for a checkpoint, and how long writing it takes
    Checkpoint(checkpoint::CheckpointArgs),
}

/// Runs a measurement and prints its figures on stdout as one JSON document.
pub fn main(command: &BenchCommand) -> anyhow::Result<()> {
    let figures = match command {
        BenchCommand::Loader(args) => loader::run(args),
        BenchCommand::Text(args) => text::run(args),
        BenchCommand::Order(args) => order::run(args),
        BenchCommand::Step(args) => step::run(args),
        BenchCommand::Embed(args) => embed::run(args),
        BenchCommand::Contrast(args) => contrast::run(args),
        BenchCommand::Loss(args) => loss::run(args),
        BenchCommand::Collective(args) => collective::run(args),
        BenchCommand::Checkpoint(args) => checkpoint::run(args),
    }?;
    print(&figures)
}

fn print(figures: &Value) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(figures).context("figures are JSON")?);
    Ok(())
}

/// Where to compute, with so many CPU threads.
fn device(choice: DeviceChoice, threads: i32) -> anyhow::Result<tch::Device> {
    // Before anything else of libtorch: it looks for CUDA once.
    let device = choice.choose(0).map_err(anyhow::Error::msg)?;
    tch::set_num_threads(threads);
    Ok(device)
}

/// Draws all matrices where they lie: what a model's step takes depends on shapes alone, and a GPU draws billions in seconds.
fn draw(store: &tch::nn::VarStore) {
    tch::manual_seed(0);
    for mut weight in store.variables().into_values().filter(|weight| weight.dim() > 1) {
        tch::no_grad(|| _ = weight.normal_(0.0, 0.02));
    }
}

/// Adds what the model computes, the share of what the device can do in this kind at most, and the memory that it took.
fn add_utilisation(figures: &mut Value, flop_per_s: f64, (device, kind): (tch::Device, tch::Kind)) {
    let peak = peak::flop_per_s(device, kind);
    figures["model_flop_per_s"] = flop_per_s.into();
    figures["device_peak_flop_per_s"] = peak.into();
    figures["mfu"] = peak.map(|peak| flop_per_s / peak).into();
    figures["peak_memory_bytes"] = memory::peak_bytes(device).into();
}

/// The middle of repeated measurements, in their own unit; of an even number the mean of the middle two.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
