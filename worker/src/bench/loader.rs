//! Images a second from tars to pixels, as training reads them, beside decoding and resizing alone.

use super::median;
use crate::{
    data::{Bare, BareTimes, BatchRequest, Dataset, Loader, LoaderConfig, OnBroken, SampleRequest, Transform},
    storage::{Limits, Storage},
};
use anyhow::Context as _;
use common::{
    ids::{Epoch, SampleIndex},
    recipe::{
        Augment, CaptionColumn, Captions, ConvertToRgb, DataKind, DataPath, DataSet, IndexPlace, PixelMode, RowRange,
    },
    sampler::Shuffle,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Instant};

/// The most images that are held in memory for the bound.
const MOST_IN_MEMORY: u64 = 4096;

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct LoaderArgs {
    /// Folder of tars, or pattern of tars, or URL of one such as s3://bucket/data/*.tar
    #[arg(value_name = "TARS", conflicts_with = "data")]
    pub tars: Option<DataPath>,
    /// The same as TARS
    #[arg(long, default_value = "tests/data/emoji/emoji-wds/train/*.tar", value_name = "GLOB")]
    pub data: DataPath,
    /// Side of the square images in pixels
    #[arg(long, default_value_t = 224)]
    pub size: u32,
    /// How near to Pillow's the pixels are: `fast`, or `pillow-exact` for Pillow's bytes
    #[arg(long, default_value = "pillow-exact", value_parser = ["fast", "pillow-exact"])]
    pub pixels: String,
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

/// One time through the data, by the loader and without it.
struct Pass {
    wall_s: f64,
    wait_s: f64,
    skipped: usize,
    bare: BareTimes,
}

/// Measures, and returns the figures. The loader and the bound take turns, so that both see the same machine.
pub fn run(args: &LoaderArgs) -> anyhow::Result<Value> {
    anyhow::ensure!(
        args.batch > 0 && args.repeats > 0 && args.size > 0,
        "--batch, --repeats and --size must be 1 or more"
    );
    let cores = std::thread::available_parallelism().context("the number of cores is unknown: give --threads")?.get();
    let threads = args.threads.unwrap_or(cores);
    anyhow::ensure!(threads > 0, "--threads must be 1 or more");
    let storage = Arc::new(Storage::from_environment(Limits::default()));
    let began = Instant::now();
    let dataset = Arc::new(Dataset::open(&storage, "bench", &spec(args))?);
    let index_s = began.elapsed().as_secs_f64();
    let images = dataset.len();
    let config = config(args, &dataset, threads);
    let bare = Bare::read(&config, (0..images.min(MOST_IN_MEMORY)).map(|index| sample(index, 0)))?;
    let mut passes = Vec::new();
    for epoch in 0..args.warmup + args.repeats {
        let pass = pass(&config, &bare, requests(args.batch, images, epoch))?;
        if epoch >= args.warmup {
            passes.push(pass);
        }
    }
    let middle = |figure: fn(&Pass) -> f64| median(&passes.iter().map(figure).collect::<Vec<_>>());
    let per_bare = |seconds: f64| seconds / bare.count() as f64;
    let (wall_s, bare_s) = (middle(|pass| pass.wall_s), middle(|pass| pass.bare.wall.as_secs_f64()));
    let images_per_s = images as f64 / wall_s;
    let bound = 1.0 / per_bare(bare_s);
    Ok(json!({
        "schema": 1, "bench": "loader", "images": images, "image_size_pixels": args.size, "batch": args.batch,
        "pixels": args.pixels, "threads": threads, "cores": cores, "warmup": args.warmup, "repeats": args.repeats,
        "skipped": passes.iter().map(|pass| pass.skipped).sum::<usize>(), "index_s": index_s, "wall_s": wall_s,
        "wait_s": middle(|pass| pass.wait_s), "images_per_s": images_per_s,
        "images_per_s_per_core": images_per_s / threads.min(cores) as f64,
        "decode_s": per_bare(middle(|pass| pass.bare.decode.as_secs_f64())),
        "resize_s": per_bare(middle(|pass| pass.bare.resize.as_secs_f64())),
        "bound_images_per_s": bound, "share_of_bound": images_per_s / bound,
    }))
}

fn pass(
    config: &LoaderConfig,
    bare: &Bare<'_>,
    requests: impl Iterator<Item = BatchRequest> + Send + 'static,
) -> anyhow::Result<Pass> {
    let began = Instant::now();
    let mut skipped = 0;
    let mut loader = Loader::start(config.clone(), requests);
    while let Some(batch) = loader.next() {
        skipped += batch?.broken.len();
    }
    let (wall_s, wait_s) = (began.elapsed().as_secs_f64(), loader.wait_time().as_secs_f64());
    Ok(Pass { wall_s, wait_s, skipped, bare: bare.run() })
}

fn spec(args: &LoaderArgs) -> DataSet {
    let given = args.tars.as_ref().unwrap_or(&args.data);
    let pattern = match given {
        DataPath::Path(folder) if folder.is_dir() => folder.join("*.tar").into(),
        given => given.clone(),
    };
    DataSet {
        kind: DataKind::Webdataset,
        shards: vec![pattern],
        // A column of weight 0 may be absent: only images are measured.
        captions: Captions { table: None, columns: vec![CaptionColumn { name: ".txt".to_owned(), weight: 0 }] },
        broken_limit: 1.0,
        shuffle: Shuffle::Full,
        images: None,
        image_column: None,
        rows: RowRange::default(),
        only: BTreeMap::new(),
        index: IndexPlace::Cache,
        vectors: None,
        benchmark: None,
        classes: None,
    }
}

fn config(args: &LoaderArgs, dataset: &Arc<Dataset>, threads: usize) -> LoaderConfig {
    let augment = Augment { scale: (0.9, 1.0), ratio: (3.0 / 4.0, 4.0 / 3.0) };
    LoaderConfig {
        datasets: vec![dataset.clone()],
        image_size: args.size,
        transform: Transform::Train { augment },
        pixels: if args.pixels == "fast" { PixelMode::Fast } else { PixelMode::PillowExact },
        convert: ConvertToRgb::BeforeResize,
        on_broken: OnBroken::LeaveOut,
        seed: 0,
        threads,
        prefetch_batches: 4,
        beside: None,
    }
}

fn sample(index: u64, epoch: u64) -> SampleRequest {
    SampleRequest { source: 0, index: SampleIndex(index), epoch: Epoch(epoch) }
}

fn requests(batch: u64, images: u64, epoch: u64) -> impl Iterator<Item = BatchRequest> {
    (0..images.div_ceil(batch)).map(move |tag| {
        let samples = (tag * batch..images.min((tag + 1) * batch)).map(|index| sample(index, epoch)).collect();
        BatchRequest { tag, samples }
    })
}
