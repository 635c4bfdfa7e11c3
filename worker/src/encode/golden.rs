//! Reference vectors of inputs that anyone can make again.
//!
//! Image k has the size [`SIZES`]`[k]` and at column x, row y, channel c the byte (7x + 13y + 85c + 40k) mod 256, without loss
//! (as PNG, say); texts are [`SENTENCES`]. The file holds both (`pixels.K` [rows, columns, 3], the sentences as metadata), the
//! features (`image` [2, P], `text` [3, P], fp32, normalised), the LLM's vectors (`vectors` [3, D]), which tell whether the
//! LLM or the adapter is at fault, and the fingerprint of the model's `llm2clip.json`.

use super::{Encoder, images::ImageSide, texts::TextSide};
use crate::export::write_safetensors;
use anyhow::Context as _;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};
use tch::{Kind, Tensor};

/// Columns and rows of the images.
const SIZES: [(u32, u32); 2] = [(128, 128), (192, 128)];
/// The texts.
const SENTENCES: [&str; 3] = [
    "A red fox sleeps in the snow.",
    "Two people on bicycles cross a wooden bridge over a river at sunset; a small white dog runs behind them.",
    "7 × 9 = 63",
];
/// By how much a number may differ: what libraries, devices and orders of summation make of fp32.
const TOLERANCE: f64 = 1e-3;

const VECTORS: &str = "vectors";
/// The tensors that are compared.
const NAMES: [&str; 3] = ["image", VECTORS, "text"];

/// What is asked of `--golden`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wish {
    Write(PathBuf),
    Check(PathBuf),
}

impl Wish {
    pub(super) fn parse(words: &[String]) -> anyhow::Result<Option<Self>> {
        match words {
            [] => Ok(None),
            [verb, file] if verb == "write" => Ok(Some(Wish::Write(file.into()))),
            [verb, file] if verb == "check" => Ok(Some(Wish::Check(file.into()))),
            words => anyhow::bail!("--golden takes `write FILE` or `check FILE`, not `{}`", words.join(" ")),
        }
    }
}

/// Does what is asked; what came of it, as a document and for people.
pub(super) fn run(wish: &Wish, encoder: &Encoder<'_>, texts: &TextSide<'_>) -> anyhow::Result<(Value, String)> {
    let pictures = SIZES.iter().enumerate().map(|(k, size)| Ok(("of the reference", png(pixels(k, *size), *size)?)));
    let image = ImageSide::new(encoder).of_bytes(&pictures.collect::<anyhow::Result<Vec<_>>>()?)?;
    let vectors = texts.vectors(&SENTENCES.map(str::to_owned))?;
    let ours = [image, texts.tensor(&vectors)?, texts.features(&vectors)?];
    let fingerprint = &encoder.model.description.fingerprint;
    match wish {
        Wish::Write(path) => {
            write(path, ours, fingerprint)?;
            let line =
                format!("{}: reference vectors of {} images, {} texts", path.display(), SIZES.len(), SENTENCES.len());
            Ok((json!({ "file": path }), line))
        }
        Wish::Check(path) => check(path, ours, fingerprint),
    }
}

/// The bytes of image `k`, row by row.
fn pixels(k: usize, (columns, rows): (u32, u32)) -> Vec<u8> {
    let at = |y: u32, x: u32, c: u32| ((7 * x + 13 * y + 85 * c + 40 * k as u32) % 256) as u8;
    let row = |y| (0..columns).flat_map(move |x| (0..3).map(move |c| at(y, x, c)));
    (0..rows).flat_map(row).collect()
}

fn png(pixels: Vec<u8>, (columns, rows): (u32, u32)) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, columns, rows);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header()?.write_image_data(&pixels)?;
    Ok(bytes)
}

fn write(path: &Path, ours: [Tensor; 3], fingerprint: &str) -> anyhow::Result<()> {
    let mut tensors: Vec<(String, Tensor)> = NAMES.into_iter().map(str::to_owned).zip(ours).collect();
    for (k, size) in SIZES.iter().enumerate() {
        let shape = [i64::from(size.1), i64::from(size.0), 3];
        let bytes = Tensor::from_data_size(&pixels(k, *size), &shape, Kind::Uint8);
        tensors.push((format!("pixels.{k}"), bytes));
    }
    let sentences = serde_json::to_string(&SENTENCES).expect("sentences are JSON");
    let metadata = [("schema", "1".to_owned()), ("fingerprint", fingerprint.to_owned()), ("sentences", sentences)];
    Ok(write_safetensors(path, tensors, &metadata)?)
}

fn check(path: &Path, ours: [Tensor; 3], fingerprint: &str) -> anyhow::Result<(Value, String)> {
    let bytes = std::fs::read(path).with_context(|| format!("could not read --golden check {}", path.display()))?;
    let none = || format!("{} is no file of reference vectors: `--golden write` makes one", path.display());
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).with_context(none)?;
    let fields: HashMap<String, String> = header.metadata().clone().unwrap_or_default();
    let theirs = fields.get("fingerprint").with_context(none)?;
    anyhow::ensure!(
        theirs == fingerprint,
        "{} is of another model: its fingerprint begins with {:.12}, that of this model's llm2clip.json with {fingerprint:.12}",
        path.display(),
        theirs
    );
    let tensors: HashMap<String, Tensor> = Tensor::read_safetensors(path).with_context(none)?.into_iter().collect();
    let mut said = json!({ "file": path, "tolerance": TOLERANCE });
    let (mut lines, mut same) = (Vec::new(), true);
    for (name, ours) in NAMES.into_iter().zip(ours) {
        let theirs = tensors.get(name).filter(|theirs| theirs.size() == ours.size()).with_context(none)?;
        let (apart, cosine) = compare(&ours, theirs);
        // The LLM's vectors have no length of their own: what becomes of them counts.
        same &= apart <= TOLERANCE || name == VECTORS;
        said[name] = json!({ "max_difference": apart, "min_cosine": cosine });
        lines.push(format!("{name}: largest difference {apart:.1e}, lowest cosine {cosine:.6}"));
    }
    let verdict = if same { "the same" } else { "NOT the same" };
    said["same"] = json!(same);
    let text = format!("{}: {verdict} (tolerance {TOLERANCE:.0e})\n  {}", path.display(), lines.join("\n  "));
    Ok((said, text))
}

/// The largest difference of two numbers, and the lowest cosine of two rows.
fn compare(ours: &Tensor, theirs: &Tensor) -> (f64, f64) {
    let (ours, theirs) = (ours.to_kind(Kind::Double), theirs.to_kind(Kind::Double));
    let norm = |x: &Tensor| x.norm_scalaropt_dim(2.0, [-1i64], false);
    let cosines =
        (&ours * &theirs).sum_dim_intlist([-1i64].as_slice(), false, Kind::Double) / (norm(&ours) * norm(&theirs));
    ((&ours - &theirs).abs().max().double_value(&[]), cosines.min().double_value(&[]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_image_is_the_formula() {
        let bytes = pixels(1, (192, 128));
        assert_eq!(bytes.len(), 192 * 128 * 3);
        let (x, y, c) = (100, 77, 2);
        assert_eq!(usize::from(bytes[(y * 192 + x) * 3 + c]), (7 * x + 13 * y + 85 * c + 40) % 256);
    }

    #[test]
    fn rows_that_differ_are_told_by_difference_and_cosine() {
        let ours = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 1.0]).view([2, 2]);
        let theirs = Tensor::from_slice(&[1.0f32, 0.0, 0.6, 0.8]).view([2, 2]);
        let (apart, cosine) = compare(&ours, &theirs);
        assert!((apart - 0.6).abs() < 1e-6 && (cosine - 0.8).abs() < 1e-6);
        assert_eq!(Wish::parse(&["check".to_owned(), "a".to_owned()]).unwrap(), Some(Wish::Check("a".into())));
        assert!(Wish::parse(&["verify".to_owned(), "a".to_owned()]).unwrap_err().to_string().contains("check FILE"));
    }
}
