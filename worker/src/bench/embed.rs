//! Texts and tokens a second of an LLM that reads captions, as the stage `embed` does: in batches of like length.

use super::{add_utilisation, device, llm::LlmArgs, median};
use crate::{model::tokenizer::Encoded, torch::memory, trainer::stages::text::by_tokens};
use serde_json::{Value, json};
use std::time::Instant;
use tch::Device;

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct EmbedArgs {
    #[command(flatten)]
    llm: LlmArgs,
    /// Texts
    #[arg(long, default_value_t = 256)]
    texts: usize,
    /// Tokens of a batch
    #[arg(long, default_value_t = 4096)]
    batch_tokens: usize,
    /// Passes over the texts before the measured ones
    #[arg(long, default_value_t = 1)]
    warmup: usize,
    /// Measured passes
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// One JSON document on stdout (always so)
    #[arg(short, long, default_value = "json", value_parser = ["json"])]
    output: String,
}

/// Measures, and returns the figures.
pub fn run(args: &EmbedArgs) -> anyhow::Result<Value> {
    args.llm.check()?;
    anyhow::ensure!(
        args.texts > 0 && args.repeats > 0 && args.batch_tokens > 0,
        "--texts, --batch-tokens and --repeats must be 1 or more"
    );
    let device = device(args.llm.device, args.llm.threads)?;
    let llm = args.llm.build(device)?;
    let texts = args.llm.texts(args.texts, llm.vocabulary());
    let tokens: usize = texts.iter().map(|text| text.ids.len()).sum();
    let lengths: Vec<i64> = texts.iter().map(|text| text.ids.len() as i64).collect();
    let batches: Vec<Vec<Encoded>> = by_tokens(texts, |text| text.ids.len(), args.batch_tokens);
    let mut seconds = Vec::new();
    for pass in 0..args.warmup + args.repeats {
        if pass == args.warmup {
            memory::reset_peak(device);
        }
        let began = Instant::now();
        for batch in &batches {
            let vectors_ND = tch::no_grad(|| llm.vectors(&batch.iter().collect::<Vec<_>>()));
            // As the stage does: the host has them before the next batch.
            let on_host = vectors_ND.to_device(Device::Cpu);
            anyhow::ensure!(bool::try_from(on_host.isfinite().all())?, "a vector is not finite");
        }
        seconds.push(began.elapsed().as_secs_f64());
    }
    let pass_s = median(&seconds[args.warmup..]);
    let mut figures = json!({
        "schema": 1, "bench": "embed", "device": args.llm.device.to_string(), "precision": args.llm.precision,
        "threads": args.llm.threads, "repeats": args.repeats, "parameters": llm.config.size().parameters,
        "texts": args.texts, "tokens": tokens, "batches": batches.len(), "batch_tokens": args.batch_tokens,
        "texts_per_s": args.texts as f64 / pass_s, "tokens_per_s": tokens as f64 / pass_s,
    });
    add_utilisation(&mut figures, llm.llama.flops(&lengths) / pass_s, (device, args.llm.kind()));
    Ok(figures)
}
