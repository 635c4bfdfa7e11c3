//! Seconds of one optimizer step of a CLIP vision tower against fixed text vectors, in this process alone.

use super::median;
use crate::{
    collective::Solo,
    model::{
        init,
        vit::{ClipVision, ClipVisionConfig},
    },
    trainer::{
        parameters::{FlatParameters, clip_groups},
        step::{PairEncoder, StepSettings, contrastive_step},
    },
};
use anyhow::Context as _;
use serde_json::{Value, json};
use std::{path::PathBuf, time::Instant};
use tch::{Device, Kind, Tensor, nn};

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct StepArgs {
    /// Pairs a step
    #[arg(long, default_value_t = 64)]
    pub batch: i64,
    /// Pairs per forward and backward pass; the whole batch unless given
    #[arg(long)]
    pub chunk: Option<i64>,
    /// Folder of a config.json; without it a small tower (112 pixels, 6 layers, width 256)
    #[arg(long)]
    pub vision: Option<PathBuf>,
    /// What to compute in; weights and optimizer are fp32 in any case
    #[arg(long, default_value = "fp32", value_parser = ["fp32", "bf16"])]
    pub precision: String,
    /// CPU threads
    #[arg(long, default_value_t = 2)]
    pub threads: i32,
    /// Steps before the measured ones
    #[arg(long, default_value_t = 3)]
    pub warmup: usize,
    /// Measured steps
    #[arg(long, default_value_t = 10)]
    pub repeats: usize,
    /// One JSON document on stdout (always so)
    #[arg(short, long, default_value = "json", value_parser = ["json"])]
    pub output: String,
}

struct Fixed {
    compute: Kind,
    tower: ClipVision,
    pixels: Vec<Tensor>,
    text: Vec<Tensor>,
}

impl PairEncoder for Fixed {
    fn encode(&self, chunk: usize) -> (Tensor, Tensor) {
        (self.tower.forward(&self.pixels[chunk].to_kind(self.compute)), self.text[chunk].shallow_clone())
    }
}

/// Measures, and returns the figures.
pub fn run(args: &StepArgs) -> anyhow::Result<Value> {
    anyhow::ensure!(args.batch > 0 && args.repeats > 0, "--batch and --repeats must be 1 or more");
    tch::set_num_threads(args.threads);
    tch::manual_seed(0);
    let config: ClipVisionConfig = match &args.vision {
        Some(folder) => crate::model::config::read(folder)?,
        None => serde_json::from_value(json!({
            "model_type": "clip_vision_model", "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6,
            "num_attention_heads": 4, "image_size": 112, "patch_size": 16, "hidden_act": "gelu",
            "layer_norm_eps": 1e-5, "projection_dim": 256,
        }))
        .context("the built-in config is one")?,
    };
    let store = nn::VarStore::new(Device::Cpu);
    let tower = ClipVision::new(&store.root(), &config);
    init::random(&store, 0, &config);
    let log_scale = store.root().var("logit_scale", &[], nn::Init::Const((1.0f64 / 0.07).ln()));
    let groups = clip_groups(0.2, 1.0, tower.layers(), |name| tower.layer_id(name));
    let mut parameters = FlatParameters::new(store.variables().into_iter().collect(), groups, Device::Cpu)?;

    let size = config.image_size;
    let pixels = Tensor::randn([args.batch, 3, size, size], (Kind::Float, Device::Cpu));
    let text = Tensor::randn([args.batch, config.projection_dim], (Kind::Float, Device::Cpu));
    let chunk = args.chunk.unwrap_or(args.batch);
    let sizes: Vec<i64> = (0..args.batch).step_by(chunk.max(1) as usize).map(|at| chunk.min(args.batch - at)).collect();
    let compute = if args.precision == "bf16" { Kind::BFloat16 } else { Kind::Float };
    let encoder =
        Fixed { compute, tower, pixels: pixels.split_with_sizes(&sizes, 0), text: text.split_with_sizes(&sizes, 0) };
    let settings =
        StepSettings { step: 1, learning_rate: 1e-3, betas: (0.9, 0.98), eps: 1e-6, clip_norm: None, tile: 4096 };
    let mut seconds = Vec::new();
    let mut parts: Vec<[f64; 6]> = Vec::new();
    for step in 0..args.warmup + args.repeats {
        let began = Instant::now();
        let output = contrastive_step(
            &encoder,
            (&sizes, &[args.batch]),
            &Solo,
            &mut parameters,
            &log_scale,
            &StepSettings { step: step as u64 + 1, ..settings },
        )?;
        if step >= args.warmup {
            seconds.push(began.elapsed().as_secs_f64());
            parts.push(output.times.seconds());
        }
    }
    let part = |i: usize| median(&parts.iter().map(|times| times[i]).collect::<Vec<_>>());
    let step_s = median(&seconds);
    Ok(json!({
        "schema": 1, "bench": "step", "precision": args.precision,
        "batch": args.batch, "chunk": chunk, "threads": args.threads, "repeats": args.repeats,
        "parameters": parameters.numel(), "step_s": step_s, "images_per_s": args.batch as f64 / step_s,
        "encode_s": part(0), "gather_s": part(1), "loss_s": part(2), "backward_s": part(3), "reduce_s": part(4), "optimizer_s": part(5),
    }))
}
