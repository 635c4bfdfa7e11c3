//! Texts to features: the LLM that the model names, read as it says, then the adapter.

use super::Encoder;
use crate::{
    data::progress::Line,
    export::Description,
    model::{config, llama::LlamaConfig},
    trainer::stages::text::CaptionEncoder,
    vectors::Provenance,
};
use anyhow::Context as _;
use common::recipe::TextModel;
use half::bf16;
use std::path::Path;
use tch::{Kind, Tensor};

/// A file's lines. Empty ones are an error, since they have no vector.
pub(super) fn lines(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("could not read --texts {}", path.display()))?;
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if let Some(empty) = lines.iter().position(|line| line.trim().is_empty()) {
        anyhow::bail!(
            "{}: line {} is empty, and an empty text has no features: take it out",
            path.display(),
            empty + 1
        );
    }
    anyhow::ensure!(!lines.is_empty(), "{} has no text: write one a line", path.display());
    Ok(lines)
}

/// The LLM with the adapter behind it.
pub(super) struct TextSide<'a> {
    encoder: &'a Encoder<'a>,
    llm: CaptionEncoder,
}

impl<'a> TextSide<'a> {
    /// Opens the LLM, after making sure that it is the one of the training.
    pub(super) fn open(encoder: &'a Encoder<'a>) -> anyhow::Result<Self> {
        let (args, description) = (encoder.args, &encoder.model.description);
        let spec = description.text_model(&args.model, args.llm.as_deref());
        check(&spec, description)?;
        let llm = CaptionEncoder::open(&spec, description.text.seed, description.text.precision, encoder.device)?;
        Ok(Self { encoder, llm })
    }

    /// The LLM's vectors [N, D] of texts, rounded as those that the adapter was trained on.
    pub(super) fn vectors(&self, texts: &[String]) -> anyhow::Result<Vec<bf16>> {
        let tokens = |(row, text): (usize, &String)| self.llm.tokens(row, text);
        let tokens = texts.iter().enumerate().map(tokens).collect::<Result<Vec<_>, _>>()?;
        let mut vectors = vec![bf16::ZERO; texts.len() * self.width()];
        let line = Line::new("reading", "texts");
        let mut done = 0;
        for batch in CaptionEncoder::batches(tokens, self.encoder.args.batch_tokens as usize) {
            self.llm.encode_into(&batch, &mut vectors)?;
            done += batch.len() as u64;
            line.show(done, texts.len() as u64, 0);
        }
        Ok(vectors)
    }

    /// Features [N, P] of vectors [N, D], normalised, on the CPU.
    pub(super) fn features(&self, vectors: &[bf16]) -> anyhow::Result<Tensor> {
        let parts = vectors.chunks(self.width() * self.encoder.args.batch as usize).map(|part| self.adapt(part));
        Ok(Tensor::cat(&parts.collect::<anyhow::Result<Vec<_>>>()?, 0))
    }

    /// Vectors as a tensor [N, D] in fp32.
    pub(super) fn tensor(&self, vectors: &[bf16]) -> anyhow::Result<Tensor> {
        let shape = [(vectors.len() / self.width()) as i64, self.width() as i64];
        // Not `from_slice`: tch 0.24 takes bf16 for fp16.
        let vectors = Tensor::f_from_data_size(bytemuck::cast_slice(vectors), &shape, Kind::BFloat16)?;
        Ok(vectors.to_kind(Kind::Float))
    }

    /// D.
    fn width(&self) -> usize {
        self.llm.width()
    }

    fn adapt(&self, vectors: &[bf16]) -> anyhow::Result<Tensor> {
        let vectors = self.tensor(vectors)?.to_device(self.encoder.device).to_kind(self.encoder.kind);
        Ok(self.encoder.model.text_features(&vectors).to_device(tch::Device::Cpu))
    }
}

/// Whether the LLM is the one whose vectors the adapter was trained on.
fn check(spec: &TextModel, description: &Description) -> anyhow::Result<()> {
    let folder = spec.folder.display();
    anyhow::ensure!(
        spec.folder.is_dir(),
        "the LLM {folder}, on whose vectors this model was trained, is not there: name its folder with --llm"
    );
    let config: LlamaConfig = config::read(&spec.folder)?;
    anyhow::ensure!(
        config.hidden_size == description.text.width,
        "the LLM {folder} makes vectors of {} numbers, and this model takes {}: name the LLM that it was trained with, by --llm",
        config.hidden_size,
        description.text.width
    );
    let provenance = Provenance::of_encoder(spec, description.text.seed, description.text.precision)?;
    let trained = Provenance::from(description.text.provenance.clone());
    if let Some((field, trained, here)) = provenance.difference(&trained) {
        anyhow::bail!(
            "the LLM {folder} is not the one on whose vectors this model was trained: {field} is {here} here and was {trained} \
             then. Name the right one with --llm, or take llm2clip.json as it was written"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_text_and_an_empty_one_is_named_by_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("texts.txt");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            lines(&path).map_err(|error| error.to_string())
        };
        assert_eq!(read("a fox\r\nein Hase\n").unwrap(), ["a fox", "ein Hase"]);
        assert!(read("a fox\n \nein Hase\n").unwrap_err().contains("line 2 is empty"));
        assert!(read("").unwrap_err().contains("has no text"));
        assert!(lines(&folder.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
