//! An LLM of any size with random weights, and texts for it: what a GPU does with it depends on shapes alone.

use super::draw;
use crate::{
    model::{
        config,
        llama::{Llama, LlamaConfig},
        tokenizer::Encoded,
    },
    torch::cuda::DeviceChoice,
    trainer::stages::llm::Llm,
};
use anyhow::Context as _;
use common::recipe::Attention;
use serde_json::json;
use std::path::PathBuf;
use tch::{Device, Kind, nn};

/// Which LLM reads what.
#[derive(Debug, clap::Args)]
pub struct LlmArgs {
    /// Folder of a config.json; without it a small LLM (4 layers, width 256)
    #[arg(long)]
    pub text: Option<PathBuf>,
    /// What to keep frozen weights and to compute in
    #[arg(long, default_value = "fp32", value_parser = ["fp32", "bf16"])]
    pub precision: String,
    /// Tokens of the shortest text
    #[arg(long, default_value_t = 8)]
    pub shortest: usize,
    /// Tokens of the longest text; lengths between are equally frequent
    #[arg(long, default_value_t = 64)]
    pub longest: usize,
    /// Where to compute: cpu, cuda, cuda:N, auto
    #[arg(long, default_value = "cpu")]
    pub device: DeviceChoice,
    /// CPU threads
    #[arg(long, default_value_t = 2)]
    pub threads: i32,
}

impl LlmArgs {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            0 < self.shortest && self.shortest <= self.longest,
            "--shortest must be from 1 to --longest, which is {}",
            self.longest
        );
        Ok(())
    }

    pub(super) fn kind(&self) -> Kind {
        if self.precision == "bf16" { Kind::BFloat16 } else { Kind::Float }
    }

    /// The LLM, seeing both ways.
    pub(super) fn build(&self, device: Device) -> anyhow::Result<Llm> {
        let config: LlamaConfig = match &self.text {
            Some(folder) => config::read(folder)?,
            None => serde_json::from_value(json!({
                "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
                "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
            }))
            .context("the built-in config is one")?,
        };
        let mut store = nn::VarStore::new(device);
        store.set_kind(self.kind());
        let mut llama = Llama::new(&store.root(), &config, Attention::Bidirectional);
        draw(&store);
        store.freeze();
        llama.compute_in(self.kind());
        Ok(Llm { llama, config, store })
    }

    /// So many texts, the same at every call: lengths spread evenly, neighbours unlike each other.
    pub(super) fn texts(&self, count: usize, vocabulary: u32) -> Vec<Encoded> {
        let spread = self.longest - self.shortest + 1;
        let text = |number: usize| {
            // Steps of the golden ratio fill a range evenly, whatever its width, from any number of texts on.
            let length = self.shortest + ((number as f64 * 0.618_033_988_75).fract() * spread as f64) as usize;
            let ids =
                (0..length).map(|place| ((number * 7919 + place * 104_729) % vocabulary as usize) as u32).collect();
            Encoded { ids, span: 0..length }
        };
        (0..count).map(text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_every_length_about_as_often() {
        // Of ranges of many widths: those that a fixed step divides are no exception.
        for longest in [8, 9, 11, 71, 256] {
            let args = LlmArgs {
                text: None,
                precision: "fp32".to_owned(),
                shortest: 8,
                longest,
                device: DeviceChoice::Cpu,
                threads: 1,
            };
            let spread = longest - 7;
            let mut times = vec![0usize; spread];
            args.texts(10 * spread, 100).iter().for_each(|text| times[text.ids.len() - 8] += 1);
            assert!(times.iter().all(|times| (8..=12).contains(times)), "8 to {longest}: {times:?}");
        }
    }
}
