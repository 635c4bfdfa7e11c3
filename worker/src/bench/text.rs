//! Token ids a second: the texts of a column, held in memory, by the tokenizer of a model folder.

use super::median;
use crate::{
    data::{Documents, Places},
    model::tokenizer::TextTokenizer,
    storage::{Limits, Storage},
};
use common::recipe::{DataPath, IndexPlace};
use serde_json::{Value, json};
use std::{path::PathBuf, sync::Arc, time::Instant};

/// The most bytes of texts that are held in memory.
const MOST_BYTES: usize = 256 << 20;

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct TextArgs {
    /// A table of texts, or a pattern of several: parquet, CSV, JSON or JSON lines
    #[arg(long, default_value = "tests/data/emoji/text-train.parquet", value_name = "GLOB")]
    pub data: DataPath,
    /// The column of texts
    #[arg(long, default_value = "text")]
    pub column: String,
    /// The folder of `tokenizer.json`; that of a small tokenizer of Llama 3's kind unless given
    #[arg(long, default_value = "tests/golden/text", value_name = "FOLDER")]
    pub tokenizer: PathBuf,
    /// Threads, each with its share of the texts
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Times through the texts before the measured ones; the first is told apart, since it meets every word anew
    #[arg(long, default_value_t = 1)]
    pub warmup: u64,
    /// Measured times through the texts
    #[arg(long, default_value_t = 5)]
    pub repeats: u64,
    /// One JSON document on stdout (always so)
    #[arg(short, long, default_value = "json", value_parser = ["json"])]
    pub output: String,
}

/// Measures, and returns the figures.
pub fn run(args: &TextArgs) -> anyhow::Result<Value> {
    anyhow::ensure!(
        args.threads > 0 && args.repeats > 0 && args.warmup > 0,
        "--threads, --warmup and --repeats must be 1 or more"
    );
    let texts = texts(args)?;
    let bytes: usize = texts.iter().map(String::len).sum();
    anyhow::ensure!(bytes > 0, "there is no text in column `{}` of {}", args.column, args.data);
    let tokenizer = TextTokenizer::open(&args.tokenizer)?;
    let (mut seconds, mut tokens) = (Vec::new(), 0);
    for _ in 0..args.warmup + args.repeats {
        let began = Instant::now();
        tokens = pass(&tokenizer, &texts, args.threads)?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    let (cold_s, wall_s) = (seconds[0], median(&seconds[args.warmup as usize..]));
    let threads = args.threads as f64;
    Ok(json!({
        "schema": 1, "bench": "text", "texts": texts.len(), "text_bytes": bytes, "tokens": tokens,
        "threads": args.threads, "warmup": args.warmup, "repeats": args.repeats, "wall_s": wall_s,
        "bytes_per_s": bytes as f64 / wall_s, "tokens_per_s": tokens as f64 / wall_s,
        "bytes_per_s_per_thread": bytes as f64 / wall_s / threads,
        "tokens_per_s_per_thread": tokens as f64 / wall_s / threads,
        "cold_bytes_per_s_per_thread": bytes as f64 / cold_s / threads,
    }))
}

/// The texts of the column, from the first on, as many as may be held.
fn texts(args: &TextArgs) -> anyhow::Result<Vec<String>> {
    let storage = Arc::new(Storage::from_environment(Limits::default()));
    let (patterns, places) = ([args.data.clone()], Places::new(&IndexPlace::Cache));
    let documents = Documents::open(&storage, &patterns, &args.column, &places)?;
    let (mut texts, mut bytes) = (Vec::new(), 0);
    for row in 0..documents.len() {
        let text = documents.text(row)?;
        bytes += text.len();
        if bytes > MOST_BYTES {
            break;
        }
        texts.push(text);
    }
    Ok(texts)
}

/// Once through all texts; returns how many tokens they have.
fn pass(tokenizer: &TextTokenizer, texts: &[String], threads: usize) -> anyhow::Result<usize> {
    let share = |texts: &[String]| -> anyhow::Result<usize> {
        let mut tokens = 0;
        for text in texts {
            tokens += tokenizer.tokens(text)?.len();
        }
        Ok(tokens)
    };
    std::thread::scope(|scope| {
        let shares = texts.chunks(texts.len().div_ceil(threads).max(1));
        let running: Vec<_> = shares.map(|texts| scope.spawn(move || share(texts))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, anyhow::Result<usize>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        running.into_iter().map(join).sum()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: TextArgs,
    }

    #[test]
    fn threads_share_all_texts() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let (data, model) =
            (format!("{root}/tests/data/emoji/emoji-dense-val.parquet"), format!("{root}/tests/golden/text"));
        let figures = |threads: &str| {
            let given =
                ["text", "--data", &data, "--column", "long_caption", "--tokenizer", &model, "--threads", threads];
            run(&Cli::parse_from(given).args).unwrap()
        };
        let (one, three) = (figures("1"), figures("3"));
        assert_eq!((&one["texts"], &three["tokens"]), (&320.into(), &one["tokens"]));
        assert!(one["bytes_per_s_per_thread"].as_f64().unwrap() > 0.0);
    }
}
