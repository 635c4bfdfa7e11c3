//! Seconds and memory of the streamed contrastive loss with its gradients, beside the full matrix under autograd.

use super::{device, median};
use crate::{
    objective::{
        Repeats,
        clip::{Side, loss, own_logits},
    },
    torch::{cuda::DeviceChoice, memory, transfer::Fetch},
    trainer::timeline::{Section, Timeline},
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct LossArgs {
    /// Pairs over all ranks
    #[arg(long, default_value_t = 4096)]
    pub global_batch: i64,
    /// Pairs of this rank; all of them unless given
    #[arg(long)]
    pub rows: Option<i64>,
    /// Width of the embeddings
    #[arg(long, default_value_t = 512)]
    pub width: i64,
    /// Rows and columns of the logits at a time
    #[arg(long, default_value_t = 4096)]
    pub tile: i64,
    /// What the embeddings are in
    #[arg(long, default_value = "fp32", value_parser = ["fp32", "bf16"])]
    pub precision: String,
    /// Only the streamed loss: the full matrix takes the memory of the batch squared
    #[arg(long)]
    pub streamed_only: bool,
    /// Where to compute: cpu, cuda, cuda:N, auto
    #[arg(long, default_value = "cpu")]
    pub device: DeviceChoice,
    /// CPU threads
    #[arg(long, default_value_t = 2)]
    pub threads: i32,
    /// Runs before the measured ones
    #[arg(long, default_value_t = 2)]
    pub warmup: usize,
    /// Measured runs
    #[arg(long, default_value_t = 7)]
    pub repeats: usize,
    /// One JSON document on stdout (always so)
    #[arg(short, long, default_value = "json", value_parser = ["json"])]
    pub output: String,
}

/// Measures, and returns the figures.
pub fn run(args: &LossArgs) -> anyhow::Result<Value> {
    let rows = args.rows.unwrap_or(args.global_batch);
    anyhow::ensure!(0 < rows && rows <= args.global_batch, "--rows must be from 1 to --global-batch");
    anyhow::ensure!(args.repeats > 0 && args.width > 0, "--repeats and --width must be 1 or more");
    let device = device(args.device, args.threads)?;
    let kind = if args.precision == "bf16" { Kind::BFloat16 } else { Kind::Float };
    let idle = memory::peak_bytes(device);
    let (streamed_s, streamed_bytes) =
        measure(args, device, |timeline| streamed(args, rows, (kind, device), timeline))?;
    let full = if args.streamed_only {
        None
    } else {
        Some(measure(args, device, |timeline| full_matrix(args, rows, (kind, device), timeline))?)
    };
    Ok(json!({
        "schema": 1, "bench": "loss", "device": args.device.to_string(), "precision": args.precision,
        "global_batch": args.global_batch, "rows": rows, "width": args.width, "tile": args.tile,
        "threads": args.threads, "repeats": args.repeats,
        "streamed_s": streamed_s, "streamed_peak_bytes": streamed_bytes, "idle_bytes": idle,
        "full_matrix_autograd_s": full.map(|(seconds, _)| seconds),
        "full_matrix_peak_bytes": full.and_then(|(_, bytes)| bytes),
        "streamed_to_full": full.map(|(seconds, _)| streamed_s / seconds),
        // Six products of [rows, B] by [B, width]: two for the log-sum-exps, four for the gradients.
        "gemm_gflop_per_s": 12.0 * rows as f64 * args.global_batch as f64 * args.width as f64 / streamed_s / 1e9,
    }))
}

fn embeddings(rows: i64, width: i64, seed: i64, (kind, device): (Kind, Device)) -> Tensor {
    tch::manual_seed(seed);
    // A stretch at a time: what is measured is not how they are made.
    let part = |start: i64| {
        let x = Tensor::randn([(rows - start).min(1 << 14), width], (Kind::Float, device));
        crate::trainer::step::normalise(&x).to_kind(kind)
    };
    let all = Tensor::empty([rows, width], (kind, device));
    for start in (0..rows).step_by(1 << 14) {
        let part = part(start);
        all.narrow(0, start, part.size()[0]).copy_(&part);
    }
    all
}

/// The scale, the tile, and what is no negative.
type How<'a> = (&'a Tensor, i64, &'a Repeats);

/// What the step does in between its gathers, which here is to make rows: one tower's are in memory at a time. The other
/// ranks' statistics are those of the own rows' mean.
fn streamed(args: &LossArgs, rows: i64, options: (Kind, Device), timeline: &mut Timeline) -> Tensor {
    let scale = &Tensor::from(14.285_714f32).to_device(options.1);
    let gather = |seed| embeddings(args.global_batch, args.width, seed, options);
    fn side<'a>(own_RD: &'a Tensor, targets_BD: &'a Tensor, (scale, tile, repeats): How<'a>) -> Side<'a> {
        Side { own_RD, targets_BD, scale, first: 0, tile, repeats, smoothing: 0.0 }
    }
    let how = (scale, args.tile, &Repeats::default());
    let text_BD = gather(1);
    let (image_RD, text_RD) = (embeddings(rows, args.width, 0, options), text_BD.narrow(0, 0, rows).copy());
    timeline.lap(Section::Gather);
    let lse_image_R = side(&image_RD, &text_BD, how).lse();
    timeline.lap(Section::Loss);
    drop(text_BD);
    let image_BD = gather(0);
    timeline.lap(Section::Gather);
    let lse_text_R = side(&text_RD, &image_BD, how).lse();
    let others = |own: &Tensor| {
        let all = own.mean(own.kind()).expand([args.global_batch], false).copy();
        all.narrow(0, 0, rows).copy_(own);
        all
    };
    let (lse_image_B, lse_text_B) = (others(&lse_image_R), others(&lse_text_R));
    let (text_gradient, _) = side(&text_RD, &image_BD, how).gradient(&lse_text_B, &lse_image_B);
    timeline.lap(Section::Loss);
    drop(image_BD);
    let text_BD = gather(1);
    timeline.lap(Section::Gather);
    let (image_gradient, ds) = side(&image_RD, &text_BD, how).gradient(&lse_image_B, &lse_text_B);
    let total = loss(&Tensor::stack(&[lse_image_R, lse_text_R, own_logits(&image_RD, &text_RD, scale)], 1));
    timeline.lap(Section::Loss);
    total + ds + text_gradient.get(0).sum(Kind::Float) + image_gradient.get(0).sum(Kind::Float)
}

/// What open_clip's loss with `--local-loss --gather-with-grad` does between its gathers.
fn full_matrix(args: &LossArgs, rows: i64, options: (Kind, Device), timeline: &mut Timeline) -> Tensor {
    let leaf = |seed| embeddings(args.global_batch, args.width, seed, options).set_requires_grad(true);
    let (image_BD, text_BD) = (leaf(0), leaf(1));
    timeline.lap(Section::Gather);
    let targets = Tensor::arange(rows, (Kind::Int64, options.1));
    let logits = |own: &Tensor, all: &Tensor| (own.narrow(0, 0, rows) * 14.285_714).matmul(&all.tr());
    let one_way = |logits: Tensor| logits.cross_entropy_for_logits(&targets);
    let total = one_way(logits(&image_BD, &text_BD)) + one_way(logits(&text_BD, &image_BD));
    total.backward();
    timeline.lap(Section::Loss);
    total.detach()
}

/// Median seconds of the loss, and the peak of memory.
fn measure(
    args: &LossArgs,
    device: Device,
    body: impl Fn(&mut Timeline) -> Tensor,
) -> anyhow::Result<(f64, Option<u64>)> {
    let mut seconds = Vec::new();
    memory::reset_peak(device);
    for run in 0..args.warmup + args.repeats {
        let mut timeline = Timeline::begin(device);
        std::hint::black_box(Fetch::begin(&[&body(&mut timeline)])?.wait()?);
        if run >= args.warmup {
            let spans = timeline.spans()?.into_iter().filter(|span| span.section == Section::Loss);
            seconds.push(spans.map(|span| span.length.as_secs_f64()).sum());
        }
    }
    Ok((median(&seconds), memory::peak_bytes(device)))
}
