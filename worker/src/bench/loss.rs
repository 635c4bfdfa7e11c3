//! Seconds of the streamed contrastive loss with its gradients, beside the full matrix under autograd.

use super::median;
use crate::objective::clip::{Pairs, gradients, loss, statistics};
use serde_json::{Value, json};
use std::time::Instant;
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
    /// Columns of the logits at a time
    #[arg(long, default_value_t = 4096)]
    pub tile: i64,
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
    tch::set_num_threads(args.threads);
    tch::manual_seed(0);
    let embeddings = || {
        let x = Tensor::randn([args.global_batch, args.width], (Kind::Float, Device::Cpu));
        crate::trainer::step::normalise(&x)
    };
    let (image_BD, text_BD) = (embeddings(), embeddings());
    let scale = Tensor::from(14.285_714f32);
    let view =
        |first, rows| Pairs { image_BD: &image_BD, text_BD: &text_BD, scale: &scale, first, rows, tile: args.tile };
    let all_B3 = statistics(&view(0, args.global_batch));
    let streamed = measure(args, || {
        let own = view(0, rows);
        let _ = statistics(&own);
        let gradient = gradients(&own, &all_B3);
        gradient.scale.double_value(&[]) + loss(&all_B3).double_value(&[])
    });
    let full = measure(args, || {
        let (image, text) = (image_BD.detach().set_requires_grad(true), text_BD.detach().set_requires_grad(true));
        let logits_BB = image.matmul(&text.tr()) * &scale;
        let targets = Tensor::arange(args.global_batch, (Kind::Int64, Device::Cpu));
        let total = logits_BB.cross_entropy_for_logits(&targets) + logits_BB.tr().cross_entropy_for_logits(&targets);
        total.backward();
        total.double_value(&[])
    });
    Ok(json!({
        "schema": 1, "bench": "loss", "global_batch": args.global_batch, "rows": rows, "width": args.width, "tile": args.tile,
        "threads": args.threads, "repeats": args.repeats, "streamed_s": streamed, "full_matrix_autograd_s": full,
        "streamed_to_full": streamed / full,
        // Six products of [rows, B] by [B, width]: two for the log-sum-exps, four for the gradients.
        "gemm_gflop_per_s": 12.0 * rows as f64 * args.global_batch as f64 * args.width as f64 / streamed / 1e9,
    }))
}

fn measure(args: &LossArgs, mut body: impl FnMut() -> f64) -> f64 {
    let mut seconds = Vec::new();
    for run in 0..args.warmup + args.repeats {
        let began = Instant::now();
        std::hint::black_box(body());
        if run >= args.warmup {
            seconds.push(began.elapsed().as_secs_f64());
        }
    }
    median(&seconds)
}
