//! Images a second from tars to pixels, as training reads them.

use super::median;
use crate::data::{BatchRequest, Dataset, Loader, LoaderConfig, SampleRequest, Transform};
use anyhow::Context as _;
use common::{
    ids::{Epoch, SampleIndex},
    recipe::{Augment, CaptionColumn, Captions, DataKind, DataSet, IndexPlace, RowRange},
    sampler::Shuffle,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Instant};

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct LoaderArgs {
    /// Pattern of the tars
    #[arg(long, default_value = "tests/data/emoji/emoji-wds/train/*.tar", value_name = "GLOB")]
    pub data: PathBuf,
    /// Side of the square images in pixels
    #[arg(long, default_value_t = 112)]
    pub size: u32,
    /// Threads that decode; all cores unless given
    #[arg(long)]
    pub threads: Option<usize>,
    /// Images a batch
    #[arg(long, default_value_t = 64)]
    pub batch: u64,
    /// Times through the data before the measured ones
    #[arg(long, default_value_t = 1)]
    pub warmup: u64,
    /// Measured times through the data
    #[arg(long, default_value_t = 5)]
    pub repeats: u64,
    /// One JSON document on stdout (always so)
    #[arg(short, long, default_value = "json", value_parser = ["json"])]
    pub output: String,
}

/// Measures, and returns the figures.
pub fn run(args: &LoaderArgs) -> anyhow::Result<Value> {
    anyhow::ensure!(
        args.batch > 0 && args.repeats > 0 && args.size > 0,
        "--batch, --repeats and --size must be 1 or more"
    );
    let cores = std::thread::available_parallelism().context("the number of cores is unknown: give --threads")?.get();
    let threads = args.threads.unwrap_or(cores);
    anyhow::ensure!(threads > 0, "--threads must be 1 or more");
    let began = Instant::now();
    let dataset = Arc::new(Dataset::open("bench", &spec(args))?);
    let index_s = began.elapsed().as_secs_f64();
    let images = dataset.len();
    let mut seconds = Vec::new();
    let mut waits = Vec::new();
    let mut skipped = 0;
    for epoch in 0..args.warmup + args.repeats {
        let began = Instant::now();
        let mut loader = Loader::start(config(args, &dataset, threads), requests(args.batch, images, epoch));
        while let Some(batch) = loader.next() {
            skipped += batch?.skipped.len();
        }
        if epoch >= args.warmup {
            seconds.push(began.elapsed().as_secs_f64());
            waits.push(loader.wait_time().as_secs_f64());
        }
    }
    let wall_s = median(&seconds);
    let images_per_s = images as f64 / wall_s;
    Ok(json!({
        "schema": 1, "bench": "loader", "images": images, "image_size_pixels": args.size, "batch": args.batch,
        "threads": threads, "cores": cores, "warmup": args.warmup, "repeats": args.repeats, "skipped": skipped,
        "index_s": index_s, "wall_s": wall_s, "wait_s": median(&waits), "images_per_s": images_per_s,
        "images_per_s_per_core": images_per_s / threads.min(cores) as f64,
    }))
}

fn spec(args: &LoaderArgs) -> DataSet {
    DataSet {
        kind: DataKind::Webdataset,
        shards: vec![args.data.clone()],
        // A column of weight 0 may be absent: only images are measured.
        captions: Captions { table: None, columns: vec![CaptionColumn { name: ".txt".to_owned(), weight: 0 }] },
        broken_limit: 1.0,
        shuffle: Shuffle::Full,
        images: None,
        image_column: None,
        rows: RowRange::default(),
        only: BTreeMap::new(),
        index: IndexPlace::Cache,
    }
}

fn config(args: &LoaderArgs, dataset: &Arc<Dataset>, threads: usize) -> LoaderConfig {
    let augment = Augment { scale: (0.9, 1.0), ratio: (3.0 / 4.0, 4.0 / 3.0) };
    LoaderConfig {
        datasets: vec![dataset.clone()],
        image_size: args.size,
        transform: Transform::Train { augment },
        seed: 0,
        threads,
        prefetch_batches: 4,
    }
}

fn requests(batch: u64, images: u64, epoch: u64) -> impl Iterator<Item = BatchRequest> {
    (0..images.div_ceil(batch)).map(move |tag| {
        let sample = |index| SampleRequest { source: 0, index: SampleIndex(index), epoch: Epoch(epoch) };
        BatchRequest { tag, samples: (tag * batch..images.min((tag + 1) * batch)).map(sample).collect() }
    })
}
