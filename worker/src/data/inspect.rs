//! `llm2clip data inspect`: what is in shards, and what is broken. Every image is decoded.

use super::{
    DataError, Report, SkipReason,
    arguments::{Format, ShardsArgs},
    index::Flaw,
    progress::Line,
    report::ShardFault,
    survey::{Seen, Survey},
};
use anyhow::Context as _;
use serde::Serialize;
use std::collections::BTreeMap;

/// How many samples are shown.
const EXAMPLES: usize = 5;
/// How many characters of their captions.
const SHOWN: usize = 100;

/// Looks, and prints what was found.
pub fn main(args: &ShardsArgs) -> anyhow::Result<()> {
    let summary = inspect(&args.survey()?)?;
    match args.output {
        Format::Text => println!("{}", summary.text()),
        Format::Json => println!("{}", serde_json::to_string_pretty(&summary).context("a summary is JSON")?),
    }
    Ok(())
}

/// What is in some shards.
#[derive(Debug, Default, Serialize)]
struct Summary {
    schema: u32,
    shards: u64,
    /// Keys, broken ones included.
    samples: u64,
    usable: u64,
    /// By what the first bytes say.
    images: BTreeMap<&'static str, u64>,
    without_text: u64,
    width_pixels: Option<Spread>,
    height_pixels: Option<Spread>,
    image_bytes: Option<Spread>,
    caption_characters: Option<Spread>,
    /// Captions by length: up to so many characters, so many captions.
    caption_histogram: Vec<Bucket>,
    examples: Vec<Example>,
    skipped_total: u64,
    #[serde(flatten)]
    report: Report,
}

/// Captions of more than half as many characters, up to so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Bucket {
    up_to_characters: u64,
    captions: u64,
}

/// A sample, shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Example {
    shard: String,
    key: String,
    width_pixels: u32,
    height_pixels: u32,
    caption: String,
}

/// The range of some numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Spread {
    min: u64,
    median: u64,
    max: u64,
}

impl Spread {
    fn of(mut values: Vec<u64>) -> Option<Self> {
        values.sort_unstable();
        let (min, max) = (*values.first()?, *values.last()?);
        Some(Self { min, median: values[values.len() / 2], max })
    }
}

/// The numbers behind [`Spread`]s.
#[derive(Default)]
struct Numbers {
    widths: Vec<u64>,
    heights: Vec<u64>,
    bytes: Vec<u64>,
    characters: Vec<u64>,
}

fn inspect(survey: &Survey) -> Result<Summary, DataError> {
    let mut summary = Summary { schema: 1, shards: survey.paths.len() as u64, ..Summary::default() };
    let mut numbers = Numbers::default();
    let line = Line::new("decoding", "samples");
    for shard in 0..survey.paths.len() {
        let stem = survey.stem(shard);
        for seen in survey.look(shard)? {
            summary.add(&stem, &seen, &mut numbers);
        }
        line.show(summary.samples, survey.rows(), numbers.bytes.iter().sum());
        let footer = survey.indices[shard].footer();
        if footer.duplicates > 0 {
            summary.report.skip_more(SkipReason::Duplicate, footer.duplicates);
            footer.duplicate_examples.iter().for_each(|key| summary.report.example(SkipReason::Duplicate, &stem, key));
        }
        summary.report.faults.extend(footer.fault.as_ref().map(|fault| ShardFault {
            path: survey.paths[shard].clone(),
            fault: fault.what.clone(),
            used_bytes: fault.used_bytes,
        }));
    }
    summary.skipped_total = summary.report.skipped_total();
    summary.width_pixels = Spread::of(numbers.widths);
    summary.height_pixels = Spread::of(numbers.heights);
    summary.image_bytes = Spread::of(numbers.bytes);
    summary.caption_histogram = histogram(&numbers.characters);
    summary.caption_characters = Spread::of(numbers.characters);
    Ok(summary)
}

/// Buckets whose ends are powers of two.
fn histogram(characters: &[u64]) -> Vec<Bucket> {
    let mut buckets = BTreeMap::<u64, u64>::new();
    characters.iter().for_each(|n| *buckets.entry(n.next_power_of_two()).or_default() += 1);
    buckets.into_iter().map(|(up_to_characters, captions)| Bucket { up_to_characters, captions }).collect()
}

impl Summary {
    fn add(&mut self, stem: &str, seen: &Seen, numbers: &mut Numbers) {
        self.samples += 1;
        self.without_text += u64::from(seen.text == Err(Flaw::Missing));
        if let Some(image) = &seen.image {
            *self.images.entry(image.kind.map_or("unknown", super::pixels::ImageKind::name)).or_default() += 1;
        }
        let broken = match (&seen.image, &seen.text) {
            (None, _) if seen.empty => Some(SkipReason::EmptyImage),
            (None, _) => Some(SkipReason::NoImage),
            (Some(image), _) if image.size.is_err() => Some(SkipReason::BrokenImage),
            (_, Err(Flaw::Invalid)) => Some(SkipReason::InvalidUtf8),
            _ => None,
        };
        if let Some(reason) = broken {
            return self.report.skip(reason, stem, &seen.key);
        }
        let Some((image, size)) = seen.image.as_ref().and_then(|image| Some((image, *image.size.as_ref().ok()?)))
        else {
            return;
        };
        self.usable += 1;
        numbers.widths.push(u64::from(size.0));
        numbers.heights.push(u64::from(size.1));
        numbers.bytes.push(image.bytes);
        let caption = seen.text.as_deref().unwrap_or_default();
        numbers.characters.extend(seen.text.as_ref().ok().map(|text| text.chars().count() as u64));
        if self.examples.len() < EXAMPLES {
            self.examples.push(Example {
                shard: stem.to_owned(),
                key: seen.key.clone(),
                width_pixels: size.0,
                height_pixels: size.1,
                caption: caption.chars().take(SHOWN).collect(),
            });
        }
    }

    fn text(&self) -> String {
        let kinds: Vec<String> = self.images.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let spread = |spread: &Option<Spread>, unit| {
            let words = |s: &Spread| format!("{} to {} {unit}, median {}", s.min, s.max, s.median);
            spread.as_ref().map_or("none".to_owned(), words)
        };
        let mut lines = vec![
            format!("samples   {} in {} shards, {} usable", self.samples, self.shards, self.usable),
            format!("images    {}", if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") }),
            format!("width     {}", spread(&self.width_pixels, "pixels")),
            format!("height    {}", spread(&self.height_pixels, "pixels")),
            format!("size      {}", spread(&self.image_bytes, "bytes")),
            format!(
                "captions  {}; {} samples without .txt",
                spread(&self.caption_characters, "characters"),
                self.without_text
            ),
        ];
        lines.extend(
            self.caption_histogram
                .iter()
                .map(|bucket| format!("          {} of up to {} characters", bucket.captions, bucket.up_to_characters)),
        );
        let example = |e: &Example| {
            format!("          {}/{}, {} x {}: {}", e.shard, e.key, e.width_pixels, e.height_pixels, e.caption)
        };
        if !self.examples.is_empty() {
            lines.push("samples   such as".to_owned());
            lines.extend(self.examples.iter().map(example));
        }
        lines.push(format!("broken    {}", self.skipped_total));
        if !self.report.is_clean() {
            lines.push(self.report.to_string());
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::storage;
    use common::recipe::IndexPlace;
    use std::path::Path;
    use std::path::PathBuf;

    fn look(path: PathBuf) -> Summary {
        let index = tempfile::tempdir().unwrap();
        inspect(&Survey::open(&storage(), &[path.into()], &IndexPlace::Folder(index.path().to_owned())).unwrap())
            .unwrap()
    }

    #[test]
    fn a_folder_of_tars_is_summed_up() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/emoji/emoji-wds/val");
        let summary = look(folder);
        assert_eq!((summary.samples, summary.usable, summary.skipped_total), (320, 320, 0));
        assert_eq!(summary.images, BTreeMap::from([("jpg", 320)]));
        assert_eq!(summary.width_pixels, Some(Spread { min: 102, median: 102, max: 102 }));
        assert_eq!(summary.caption_histogram.iter().map(|bucket| bucket.captions).sum::<u64>(), 320);
        assert_eq!(summary.examples.len(), EXAMPLES);
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!((&json["schema"], &json["skipped"]), (&1.into(), &serde_json::json!({})));
    }

    #[test]
    fn what_is_broken_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/emoji/emoji-wds/val/00000.tar");
        let mut bytes = std::fs::read(source).unwrap();
        // The first image's own bytes, the rest of the tar from the middle of a member on.
        bytes[512..516].copy_from_slice(b"<htm");
        bytes.truncate(100_000);
        let path = folder.path().join("cut.tar");
        std::fs::write(&path, bytes).unwrap();
        let summary = look(path);
        assert_eq!(summary.report.skipped[&SkipReason::BrokenImage].count, 1);
        assert_eq!(summary.images["unknown"], 1);
        let text = summary.text();
        assert!(text.contains("cut.tar is truncated: used up to byte"), "{text}");
        assert!(text.contains("1 x image that cannot be decoded: cut/"), "{text}");
    }
}
