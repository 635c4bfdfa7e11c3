//! Seconds of one optimizer step of caption-to-caption tuning: LoRA beside an LLM's linear layers, in chunks by GradCache, in this
//! process alone.

use super::{
    add_utilisation, device,
    llm::LlmArgs,
    steps::{self, Steps},
};
use crate::{
    collective::Solo,
    model::{
        lora::{Lora, LoraConfig},
        tokenizer::Encoded,
    },
    objective::Repeats,
    trainer::{
        layout::clip_groups,
        parameters::FlatParameters,
        stages::llm::Llm,
        step::{
            Cut,
            contrast::{Contrast, TextEncoder, contrast_step},
        },
        timeline::Timeline,
    },
};
use serde_json::{Value, json};
use tch::Tensor;

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct ContrastArgs {
    #[command(flatten)]
    llm: LlmArgs,
    /// Pairs a step
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Pairs per forward and backward pass; the whole batch unless given
    #[arg(long)]
    chunk: Option<usize>,
    /// r of the low-rank updates, which stand beside all seven linear layers of each block
    #[arg(long, default_value_t = 16)]
    rank: i64,
    /// Run each block again in the backward pass instead of keeping what it computed
    #[arg(long)]
    activation_checkpointing: bool,
    /// Steps before the measured ones
    #[arg(long, default_value_t = 1)]
    warmup: usize,
    /// Measured steps
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// One JSON document on stdout (always so)
    #[arg(short, long, default_value = "json", value_parser = ["json"])]
    output: String,
}

/// The texts of chunks, each its queries and then its positives.
struct Fixed {
    llm: Llm,
    chunks: Vec<Vec<Encoded>>,
}

impl TextEncoder for Fixed {
    fn encode(&self, chunk: usize) -> Tensor {
        self.llm.vectors(&self.chunks[chunk].iter().collect::<Vec<_>>())
    }
}

/// Measures, and returns the figures.
pub fn run(args: &ContrastArgs) -> anyhow::Result<Value> {
    args.llm.check()?;
    anyhow::ensure!(args.batch > 0 && args.repeats > 0, "--batch and --repeats must be 1 or more");
    let chunk = args.chunk.unwrap_or(args.batch);
    anyhow::ensure!(chunk > 0, "--chunk must be 1 or more");
    let device = device(args.llm.device, args.llm.threads)?;
    let mut llm = args.llm.build(device)?;
    llm.llama.recompute_blocks(args.activation_checkpointing);
    let targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"].map(str::to_owned);
    let config = LoraConfig {
        rank: args.rank,
        alpha: 2.0 * args.rank as f64,
        dropout: 0.0,
        target_modules: targets.into(),
        rank_stabilised: false,
    };
    let lora = Lora::new(&mut llm.llama, &config, 0)?;
    lora.train(true);
    let groups = clip_groups(0.0, 1.0, llm.llama.layers(), |name| llm.llama.layer_id(name));
    let mut parameters = FlatParameters::new(lora.store().variables().into_iter().collect(), groups, device)?;
    let texts = args.llm.texts(2 * args.batch, llm.vocabulary());
    let lengths: Vec<i64> = texts.iter().map(|text| text.ids.len() as i64).collect();
    let tokens: i64 = lengths.iter().sum();
    let sizes: Vec<i64> = (0..args.batch).step_by(chunk).map(|at| chunk.min(args.batch - at) as i64).collect();
    let chunks = texts.chunks(2 * chunk).map(<[Encoded]>::to_vec).collect();
    let encoder = Fixed { llm, chunks };
    let steps = Steps::measure((args.warmup, args.repeats), device, |step| {
        let (rows, repeats) = ([args.batch as i64], Repeats::default());
        let cut = Cut { sizes: &sizes, rows: &rows, repeats: &repeats };
        let contrast = Contrast { scale: 50.0, lacking_R: None };
        let timeline = Timeline::begin(device);
        Ok(contrast_step(&encoder, cut, contrast, &Solo, &mut parameters, &steps::settings(step), timeline)?)
    })?;
    let step_s = steps.median_s();
    let mut figures = json!({
        "schema": 1, "bench": "contrast", "device": args.llm.device.to_string(), "precision": args.llm.precision,
        "threads": args.llm.threads, "repeats": args.repeats, "batch": args.batch, "chunk": chunk,
        "activation_checkpointing": args.activation_checkpointing, "parameters": encoder.llm.config.size().parameters,
        "trained_parameters": parameters.numel(), "tokens": tokens, "step_s": step_s,
        "pairs_per_s": args.batch as f64 / step_s, "tokens_per_s": tokens as f64 / step_s,
    });
    steps.add_sections(&mut figures);
    // Two forward passes' worth a text: the frozen weights get no gradients. Recomputation is not counted.
    let flop_per_s = 2.0 * encoder.llm.llama.flops(&lengths) / step_s;
    add_utilisation(&mut figures, flop_per_s, (device, args.llm.kind()));
    Ok(figures)
}
