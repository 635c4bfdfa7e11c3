//! Seconds of one optimizer step of a CLIP vision tower against fixed text vectors, in this process alone.

use super::{
    add_utilisation, device, draw,
    steps::{self, Steps},
};
use crate::{
    collective::Solo,
    model::{
        adapter::{Adapter, AdapterConfig},
        vision::{VisionConfig, VisionTower},
    },
    objective::Repeats,
    torch::cuda::DeviceChoice,
    trainer::{
        layout::clip_groups,
        parameters::FlatParameters,
        step::{
            Cut, Pairing,
            clip::{PairEncoder, clip_step},
        },
        timeline::Timeline,
    },
};
use anyhow::Context as _;
use serde_json::{Value, json};
use std::path::PathBuf;
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
    /// Width of text vectors that go through a trained adapter; without it they are fixed and of the shared width
    #[arg(long)]
    pub text_width: Option<i64>,
    /// Residual blocks of the adapter
    #[arg(long, default_value_t = 4)]
    pub adapter_blocks: i64,
    /// Run each block of the tower again in the backward pass instead of keeping what it computed
    #[arg(long)]
    pub activation_checkpointing: bool,
    /// Where to compute: cpu, cuda, cuda:N, auto
    #[arg(long, default_value = "cpu")]
    pub device: DeviceChoice,
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
    tower: Box<dyn VisionTower>,
    adapter: Option<Adapter>,
    pixels: Vec<Tensor>,
    text: Vec<Tensor>,
}

impl PairEncoder for Fixed {
    fn encode(&self, chunk: usize) -> (Tensor, Tensor) {
        let text = &self.text[chunk];
        let text = self.adapter.as_ref().map_or_else(|| text.shallow_clone(), |adapter| adapter.forward(text));
        (self.tower.forward(&self.pixels[chunk].to_kind(self.compute)), text)
    }
}

/// What is trained.
struct Setup {
    encoder: Fixed,
    parameters: FlatParameters,
    log_scale: Tensor,
    sizes: Vec<i64>,
    /// Of a training step, a pair.
    flops: f64,
}

fn config(args: &StepArgs) -> anyhow::Result<VisionConfig> {
    match &args.vision {
        Some(folder) => Ok(VisionConfig::read(folder)?),
        None => serde_json::from_value(json!({
            "model_type": "clip_vision_model", "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6,
            "num_attention_heads": 4, "image_size": 112, "patch_size": 16, "hidden_act": "gelu",
            "layer_norm_eps": 1e-5, "projection_dim": 256,
        }))
        .context("the built-in config is one"),
    }
}

fn set_up(args: &StepArgs, device: Device) -> anyhow::Result<Setup> {
    let config = config(args)?;
    let store = nn::VarStore::new(device);
    let mut tower = config.build(&store.root());
    tower.recompute_blocks(args.activation_checkpointing);
    let (output, blocks) = (config.width(), args.adapter_blocks);
    let adapter = args.text_width.map(|input| {
        let sizes = AdapterConfig { input, output, blocks, expansion: 2, l2_norm: true };
        Adapter::new(&store.root(), &sizes)
    });
    draw(&store);
    let log_scale = store.root().var("logit_scale", &[], nn::Init::Const((1.0f64 / 0.07).ln()));
    let groups = clip_groups(0.2, 1.0, tower.layers(), |name| tower.layer_id(name));
    let parameters = FlatParameters::new(store.variables().into_iter().collect(), groups, device)?;

    let chunk = args.chunk.unwrap_or(args.batch);
    let sizes: Vec<i64> = (0..args.batch).step_by(chunk.max(1) as usize).map(|at| chunk.min(args.batch - at)).collect();
    let compute = if args.precision == "bf16" { Kind::BFloat16 } else { Kind::Float };
    let normal = |shape: &[i64], kind| Tensor::randn(shape, (Kind::Float, device)).to_kind(kind);
    let size = config.image_size();
    let inputs = |count: &i64| normal(&[*count, 3, size, size], compute);
    let text = |count: &i64| normal(&[*count, args.text_width.unwrap_or(output)], compute);
    let (pixels, text) = (sizes.iter().map(inputs).collect(), sizes.iter().map(text).collect());
    let flops = 3.0 * (tower.flops(tower.patches()) + adapter.as_ref().map_or(0.0, Adapter::flops));
    let encoder = Fixed { compute, tower, adapter, pixels, text };
    Ok(Setup { encoder, parameters, log_scale, sizes, flops })
}

/// Measures, and returns the figures.
pub fn run(args: &StepArgs) -> anyhow::Result<Value> {
    anyhow::ensure!(args.batch > 0 && args.repeats > 0, "--batch and --repeats must be 1 or more");
    let device = device(args.device, args.threads)?;
    tch::manual_seed(0);
    let mut setup = set_up(args, device)?;
    let steps = Steps::measure((args.warmup, args.repeats), device, |step| {
        let (rows, repeats) = ([setup.sizes.iter().sum()], Repeats::default());
        Ok(clip_step(
            &setup.encoder,
            Cut { sizes: &setup.sizes, rows: &rows, repeats: &repeats },
            &Solo,
            &mut setup.parameters,
            Pairing::softmax(&setup.log_scale),
            &steps::settings(step),
            Timeline::begin(device),
        )?)
    })?;
    Ok(figures(args, &setup, &steps, device))
}

fn figures(args: &StepArgs, setup: &Setup, steps: &Steps, device: Device) -> Value {
    let step_s = steps.median_s();
    let mut figures = json!({
        "schema": 1, "bench": "step", "device": args.device.to_string(), "precision": args.precision,
        "batch": args.batch, "chunk": args.chunk.unwrap_or(args.batch), "threads": args.threads, "repeats": args.repeats,
        "activation_checkpointing": args.activation_checkpointing,
        "parameters": setup.parameters.numel(), "step_s": step_s, "images_per_s": args.batch as f64 / step_s,
    });
    // Three forward passes a pair, whatever recomputation adds; see `VisionTower::flops`.
    let flop_per_s = setup.flops * args.batch as f64 / step_s;
    steps.add_sections(&mut figures);
    add_utilisation(&mut figures, flop_per_s, (device, setup.encoder.compute));
    figures
}
