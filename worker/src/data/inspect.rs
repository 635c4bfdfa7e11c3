//! `llm2clip data inspect`: what is in tars, and what is broken. Every image is decoded.

use super::{
    DataError, Report, SkipReason,
    decode::{Decoder, ImageKind},
    files::Files,
    glob,
    scan::{Extent, RawSample, scan},
};
use anyhow::Context as _;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// What to look at, and how to say it.
#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    /// Tars, folders of tars, or patterns in quotes such as 'data/*.tar'
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// How to print: lines for people, or one JSON document
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    pub output: Format,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for people.
    Text,
    /// One JSON document.
    Json,
}

/// Looks, and prints what was found.
pub fn main(args: &InspectArgs) -> anyhow::Result<()> {
    let summary = inspect(&args.paths)?;
    match args.output {
        Format::Text => println!("{}", summary.text()),
        Format::Json => println!("{}", serde_json::to_string_pretty(&summary).context("a summary is JSON")?),
    }
    Ok(())
}

/// What is in some tars.
#[derive(Debug, Serialize)]
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
    skipped_total: u64,
    #[serde(flatten)]
    report: Report,
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

/// One image, decoded.
struct Seen {
    kind: Option<ImageKind>,
    /// Width and height, if it can be decoded.
    size: Option<(u32, u32)>,
}

/// The numbers behind [`Spread`]s.
#[derive(Default)]
struct Numbers {
    widths: Vec<u64>,
    heights: Vec<u64>,
    bytes: Vec<u64>,
    characters: Vec<u64>,
}

fn inspect(paths: &[PathBuf]) -> Result<Summary, DataError> {
    let mut shards = Vec::new();
    for path in paths {
        shards.extend(glob::expand(&if path.is_dir() { path.join("*.tar") } else { path.clone() })?);
    }
    let files = Files::new(shards.clone());
    let mut summary = Summary::new(shards.len() as u64);
    let mut numbers = Numbers::default();
    for (i, path) in shards.iter().enumerate() {
        let scanned = scan(path)?;
        let stem = stem(path);
        let extents: Vec<Option<Extent>> = scanned.samples.iter().map(|sample| sample.usable_image().ok()).collect();
        for (sample, seen) in scanned.samples.iter().zip(decode_all(&files, i as u32, &extents)?) {
            summary.add(&stem, sample, seen.as_ref(), &mut numbers);
        }
        scanned.duplicates.iter().for_each(|key| summary.report.skip(SkipReason::Duplicate, &stem, key));
        summary.report.faults.extend(scanned.fault);
    }
    summary.skipped_total = summary.report.skipped_total();
    summary.width_pixels = Spread::of(numbers.widths);
    summary.height_pixels = Spread::of(numbers.heights);
    summary.image_bytes = Spread::of(numbers.bytes);
    summary.caption_characters = Spread::of(numbers.characters);
    Ok(summary)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Decodes a shard's images on all cores; `None` where there is no image.
fn decode_all(files: &Files, shard: u32, extents: &[Option<Extent>]) -> Result<Vec<Option<Seen>>, DataError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = extents.len().div_ceil(threads).max(1);
    let work = |extents: &[Option<Extent>]| -> Result<Vec<Option<Seen>>, DataError> {
        let (mut decoder, mut bytes) = (Decoder::default(), Vec::new());
        let mut see = |extent: &Extent| {
            files.read(shard, extent.offset, extent.length as usize, &mut bytes)?;
            let size = decoder.decode(&bytes).ok().map(|image| (image.width, image.height));
            Ok(Seen { kind: ImageKind::of(&bytes), size })
        };
        extents.iter().map(|extent| extent.as_ref().map(&mut see).transpose()).collect()
    };
    let parts = std::thread::scope(|scope| {
        let threads: Vec<_> = extents.chunks(share).map(|part| scope.spawn(move || work(part))).collect();
        let joined =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.collect::<Result<Vec<_>, _>>()
    })?;
    Ok(parts.into_iter().flatten().collect())
}

impl Summary {
    fn new(shards: u64) -> Self {
        Self {
            schema: 1,
            shards,
            samples: 0,
            usable: 0,
            images: BTreeMap::new(),
            without_text: 0,
            width_pixels: None,
            height_pixels: None,
            image_bytes: None,
            caption_characters: None,
            skipped_total: 0,
            report: Report::default(),
        }
    }

    fn add(&mut self, stem: &str, sample: &RawSample, seen: Option<&Seen>, numbers: &mut Numbers) {
        self.samples += 1;
        let text = sample.usable_text();
        self.without_text += u64::from(text == Err(SkipReason::NoText));
        if let Some(seen) = seen {
            *self.images.entry(seen.kind.map_or("unknown", ImageKind::name)).or_default() += 1;
        }
        let image = sample.usable_image().and_then(|extent| {
            let size = seen.and_then(|seen| seen.size).ok_or(SkipReason::BrokenImage)?;
            Ok((extent, size))
        });
        let (extent, (width, height)) = match (image, text) {
            (Err(reason), _) | (_, Err(reason @ SkipReason::InvalidUtf8)) => {
                return self.report.skip(reason, stem, &sample.key);
            }
            (Ok(image), _) => image,
        };
        self.usable += 1;
        numbers.widths.push(u64::from(width));
        numbers.heights.push(u64::from(height));
        numbers.bytes.push(extent.length);
        numbers.characters.extend(text.map(|text| text.chars().count() as u64));
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
            format!("broken    {}", self.skipped_total),
        ];
        if !self.report.is_clean() {
            lines.push(self.report.to_string());
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_tars_is_summed_up() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/emoji/emoji-wds/val");
        let summary = inspect(&[folder]).unwrap();
        assert_eq!((summary.samples, summary.usable, summary.skipped_total), (320, 320, 0));
        assert_eq!(summary.images, BTreeMap::from([("jpg", 320)]));
        assert_eq!(summary.width_pixels, Some(Spread { min: 102, median: 102, max: 102 }));
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
        let summary = inspect(&[path]).unwrap();
        assert_eq!(summary.report.skipped[&SkipReason::BrokenImage].count, 1);
        assert_eq!(summary.images["unknown"], 1);
        let text = summary.text();
        assert!(text.contains("cut.tar is truncated: used up to byte"), "{text}");
        assert!(text.contains("1 x image that cannot be decoded: cut/"), "{text}");
    }
}
