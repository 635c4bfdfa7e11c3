//! What is in some shards, summed up, as JSON and as lines for people.

use super::{
    EXAMPLES,
    spread::{Bucket, Counts, Spread},
};
use crate::data::{
    Report, SkipReason,
    index::Flaw,
    pixels::ImageKind,
    report::ShardFault,
    survey::{Seen, Survey},
};
use serde::Serialize;
use std::collections::BTreeMap;

/// How many characters of a caption are printed.
const SHOWN: usize = 100;

/// What is in some shards.
#[derive(Debug, Default, Serialize)]
pub(super) struct Summary {
    pub schema: u32,
    pub shards: u64,
    /// Keys, broken ones included.
    pub samples: u64,
    pub usable: u64,
    /// By what the first bytes say.
    pub images: BTreeMap<&'static str, u64>,
    pub width_pixels: Option<Spread>,
    pub height_pixels: Option<Spread>,
    pub image_bytes: Option<Spread>,
    pub captions: Vec<ColumnSummary>,
    /// Evenly spread over the shards, broken ones too.
    pub examples: Vec<Example>,
    pub skipped_total: u64,
    #[serde(flatten)]
    pub report: Report,
}

/// The captions of a column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct ColumnSummary {
    pub name: String,
    pub captions: u64,
    /// Samples that have none, or an empty one.
    pub samples_without: u64,
    pub characters: Option<Spread>,
    /// By length in characters.
    pub histogram: Vec<Bucket>,
}

/// A sample, shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Example {
    #[serde(skip)]
    pub place: (usize, u32),
    pub shard: String,
    pub key: String,
    /// Width and height in pixels; absent when the image cannot be decoded.
    pub size: Option<(u32, u32)>,
    pub captions: Vec<Caption>,
}

/// One of its captions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Caption {
    pub column: String,
    pub text: String,
}

/// The numbers behind [`Spread`]s.
pub(super) struct Numbers {
    pub widths: Counts,
    pub heights: Counts,
    pub bytes: Counts,
    /// By column.
    pub characters: Vec<Counts>,
    /// Samples without, by column.
    pub without: Vec<u64>,
}

impl Numbers {
    /// None yet, for so many columns of captions.
    pub(super) fn of_columns(columns: usize) -> Self {
        let none = Counts::default;
        let (characters, without) = (vec![none(); columns], vec![0; columns]);
        Self { widths: none(), heights: none(), bytes: none(), characters, without }
    }
}

impl Summary {
    /// Counts a sample.
    pub(super) fn add(&mut self, stem: &str, seen: &Seen, numbers: &mut Numbers) {
        self.samples += 1;
        if let Some(image) = &seen.image {
            *self.images.entry(image.kind.map_or("unknown", ImageKind::name)).or_default() += 1;
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
        if let Some((image, size)) = seen.image.as_ref().and_then(|image| Some((image, image.size.as_ref().ok()?))) {
            self.usable += 1;
            numbers.widths.add(u64::from(size.0));
            numbers.heights.add(u64::from(size.1));
            numbers.bytes.add(image.bytes);
        }
    }

    /// Sums up the numbers.
    pub(super) fn finish(&mut self, columns: &[String], numbers: &Numbers) {
        self.skipped_total = self.report.skipped_total();
        self.width_pixels = numbers.widths.spread();
        self.height_pixels = numbers.heights.spread();
        self.image_bytes = numbers.bytes.spread();
        let column = |((name, counts), without): ((&String, &Counts), &u64)| ColumnSummary {
            name: name.clone(),
            captions: counts.len(),
            samples_without: *without,
            characters: counts.spread(),
            histogram: counts.histogram(),
        };
        self.captions = columns.iter().zip(&numbers.characters).zip(&numbers.without).map(column).collect();
    }

    /// What the index knows to be wrong with a shard.
    pub(super) fn faults(&mut self, survey: &Survey, shard: usize, stem: &str) {
        let footer = survey.indices[shard].footer();
        if footer.duplicates > 0 {
            self.report.skip_more(SkipReason::Duplicate, footer.duplicates);
            footer.duplicate_examples.iter().for_each(|key| self.report.example(SkipReason::Duplicate, stem, key));
        }
        self.report.faults.extend(footer.fault.as_ref().map(|fault| ShardFault {
            path: survey.paths[shard].clone(),
            fault: fault.what.clone(),
            used_bytes: fault.used_bytes,
        }));
    }

    /// As lines for people.
    pub(super) fn text(&self) -> String {
        let kinds: Vec<String> = self.images.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let spread = |spread: &Option<Spread>, unit| {
            let words =
                |s: &Spread| format!("{} to {} {unit}, median {}, 95 % up to {}", s.min, s.max, s.median, s.p95);
            spread.as_ref().map_or("none".to_owned(), words)
        };
        let mut lines = vec![
            format!("samples   {} in {} shards, {} usable", self.samples, self.shards, self.usable),
            format!("images    {}", if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") }),
            format!("width     {}", spread(&self.width_pixels, "pixels")),
            format!("height    {}", spread(&self.height_pixels, "pixels")),
            format!("size      {}", spread(&self.image_bytes, "bytes")),
        ];
        for column in &self.captions {
            let ColumnSummary { name, captions, samples_without, characters, histogram } = column;
            let without =
                if *samples_without > 0 { format!("; {samples_without} samples without") } else { String::new() };
            lines.push(format!("captions  {name}: {captions} of {}{without}", spread(characters, "characters")));
            let buckets: Vec<String> =
                histogram.iter().map(|bucket| format!("{} <= {}", bucket.count, bucket.up_to)).collect();
            lines.extend((!buckets.is_empty()).then(|| format!("          by length: {}", buckets.join(", "))));
        }
        if !self.examples.is_empty() {
            lines.push("samples   such as".to_owned());
            let step = self.examples.len().div_ceil(EXAMPLES as usize);
            lines.extend(self.examples.iter().step_by(step).flat_map(Example::lines));
        }
        lines.push(format!("broken    {}", self.skipped_total));
        if !self.report.is_clean() {
            lines.push(self.report.to_string());
        }
        lines.join("\n")
    }
}

impl Example {
    fn lines(&self) -> Vec<String> {
        let size = self.size.map_or("broken image".to_owned(), |(width, height)| format!("{width} x {height}"));
        let mut lines = vec![format!("          {}/{}, {size}", self.shard, self.key)];
        for Caption { column, text } in &self.captions {
            let line: String = text.chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
            let more = if text.chars().count() > SHOWN { " ..." } else { "" };
            lines.push(format!("            {column}: {line}{more}"));
        }
        lines
    }
}
