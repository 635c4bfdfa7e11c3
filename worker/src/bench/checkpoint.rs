//! How long training stands still for a checkpoint, and how long it takes until it is on storage.

use super::{device, median};
use crate::{
    checkpoint::{HostCopy, Shelf, Task, Watch, Writer},
    storage::{Limits, Storage},
    torch::cuda::DeviceChoice,
};
use anyhow::Context as _;
use common::{
    ids::{Generation, Rank, Step, WorldSize},
    recipe::is_url,
};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, mpsc::channel},
    time::Instant,
};
use tch::{Kind, Tensor};
use tempfile::TempDir;

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct CheckpointArgs {
    /// Millions of trained parameters; with both moments, 12 bytes each
    #[arg(long, default_value_t = 86.0)]
    pub million_parameters: f64,
    /// Where to write: a folder, or a URL such as s3://BUCKET/FOLDER; what is written is removed again
    #[arg(long, default_value = ".")]
    pub folder: PathBuf,
    /// Where the state is: cpu, cuda, cuda:N, auto
    #[arg(long, default_value = "cpu")]
    pub device: DeviceChoice,
    /// Checkpoints before the measured ones
    #[arg(long, default_value_t = 1)]
    pub warmup: usize,
    /// Measured checkpoints
    #[arg(long, default_value_t = 5)]
    pub repeats: usize,
    /// One JSON document on stdout (always so)
    #[arg(short, long, default_value = "json", value_parser = ["json"])]
    pub output: String,
}

/// Measures, and returns the figures.
pub fn run(args: &CheckpointArgs) -> anyhow::Result<Value> {
    anyhow::ensure!(args.million_parameters > 0.0 && args.repeats > 0, "sizes and --repeats must be above 0");
    let device = device(args.device, 1)?;
    let (shelf, _folder) = shelf(&args.folder)?;
    // Tensors of a million numbers: about the size of a layer's matrices.
    let count = (3.0 * args.million_parameters).ceil() as usize;
    let named: Vec<(String, Tensor)> =
        (0..count).map(|i| (format!("t{i}"), Tensor::ones([1000, 1000], (Kind::Float, device)))).collect();
    let (sender, written) = channel();
    let writer = Writer::start(Watch::default());
    let (mut stalls, mut writes) = (Vec::new(), Vec::new());
    for run in 0..args.warmup + args.repeats {
        let step = Step(run as u64);
        let began = Instant::now();
        let copy = HostCopy::take(&named, Rank(0), WorldSize(1), Generation(0));
        let (sender, to) = (sender.clone(), shelf.clone());
        // The receiver lives until the task is done.
        let save = Box::new(move |watch: &Watch| drop(sender.send(to.write(watch, step, &copy).map(drop))));
        writer.push(Task { step, of: (Rank(0), Generation(0)), run: save });
        let stall = began.elapsed().as_secs_f64();
        written.recv()??;
        let whole = began.elapsed().as_secs_f64();
        shelf.remove(&Watch::default(), step)?;
        if run >= args.warmup {
            stalls.push(stall);
            writes.push(whole - stall);
        }
    }
    let gib = count as f64 * 4e6 / f64::from(1 << 30);
    Ok(json!({
        "schema": 1, "bench": "checkpoint", "device": args.device.to_string(), "bytes": count * 4_000_000, "repeats": args.repeats,
        "stall_s": median(&stalls), "write_s": median(&writes),
        "copy_gib_per_s": gib / median(&stalls), "write_gib_per_s": gib / median(&writes),
    }))
}

/// Where to write, and the folder that goes with its end.
fn shelf(place: &Path) -> anyhow::Result<(Shelf, Option<TempDir>)> {
    if is_url(place) {
        let storage = Arc::new(Storage::from_environment(Limits::default()));
        let name = format!("llm2clip-bench-{}", std::process::id());
        return Ok((Shelf::open(&storage, place, &name)?, None));
    }
    let folder = tempfile::tempdir_in(place).with_context(|| format!("a folder in {}", place.display()))?;
    Ok((Shelf::folder(folder.path()), Some(folder)))
}
