//! `llm2clip data inspect`: what is in shards, and what is broken. Every image is decoded.

mod html;
mod spread;
mod summary;
mod thumbnail;

use super::{
    DataError,
    arguments::{Format, ShardsArgs},
    progress::Line,
    survey::{Done, Survey, split},
};
use anyhow::Context as _;
use std::path::PathBuf;
use summary::{Caption, Example, Numbers, Summary};
use thumbnail::Thumbnails;

/// How many samples are shown as text.
const EXAMPLES: u64 = 5;
/// How many characters of a sample's caption are kept.
const KEPT: usize = 4_000;

/// What to inspect.
#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    /// What, where its index is, and how to print
    #[command(flatten)]
    pub shards: ShardsArgs,
    /// A column of captions, as a recipe names it (.txt, .json:long_caption, .caption); may be given several times. What
    /// looks like captions unless given
    #[arg(long = "captions", value_name = "COLUMN")]
    pub columns: Vec<String>,
    /// Write one page of HTML with counts, lengths and samples
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// How many samples the page shows, evenly spread over the shards
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub samples: u64,
}

/// Looks, and prints what was found.
pub fn main(args: &InspectArgs) -> anyhow::Result<()> {
    let survey = args.shards.survey()?;
    let columns = if args.columns.is_empty() { survey.caption_columns()? } else { args.columns.clone() };
    let examples = if args.html.is_some() { args.samples } else { EXAMPLES };
    let summary = inspect(&survey, &columns, examples)?;
    if let Some(path) = &args.html {
        let pictures = pictures(&survey, &summary);
        let shards = args.shards.paths.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        std::fs::write(path, html::page(&shards, &summary, &pictures))
            .with_context(|| format!("could not write {}", path.display()))?;
    }
    match args.shards.output {
        Format::Text => println!("{}", summary.text()),
        Format::Json => println!("{}", serde_json::to_string_pretty(&summary).context("a summary is JSON")?),
    }
    Ok(())
}

fn inspect(survey: &Survey, columns: &[String], examples: u64) -> Result<Summary, DataError> {
    let mut summary = Summary { schema: 1, shards: survey.paths.len() as u64, ..Summary::default() };
    let mut numbers = Numbers::of_columns(columns.len());
    let line = Line::new("decoding", "samples");
    let done = Done::new(&line, survey.rows());
    let mut picks = picks(survey.rows(), examples).into_iter().peekable();
    for shard in 0..survey.paths.len() {
        let stem = survey.stem(shard);
        let first = summary.samples;
        let shown = summary.examples.len();
        for (row, seen) in (0..).zip(survey.look(shard, &done)?) {
            if picks.next_if_eq(&(first + u64::from(row))).is_some() {
                let size = seen.image.as_ref().and_then(|image| image.size.as_ref().ok()).copied();
                let (number, shard, key, captions) = (shard, stem.clone(), seen.key.clone(), Vec::new());
                summary.examples.push(Example { place: (number, row), shard, key, size, captions });
            }
            summary.add(&stem, &seen, &mut numbers);
        }
        captions(survey, shard, columns, &mut numbers, &mut summary.examples[shown..])?;
        summary.faults(survey, shard, &stem);
    }
    summary.finish(columns, &numbers);
    Ok(summary)
}

/// Rows, evenly spread over all.
fn picks(rows: u64, wanted: u64) -> Vec<u64> {
    let wanted = wanted.min(rows);
    (0..wanted).map(|number| number * rows / wanted).collect()
}

/// Measures a shard's captions, and keeps those of its examples.
fn captions(
    survey: &Survey,
    shard: usize,
    columns: &[String],
    numbers: &mut Numbers,
    examples: &mut [Example],
) -> Result<(), DataError> {
    let mut examples = examples.iter_mut().peekable();
    survey.texts(shard, columns, &mut |row, texts| {
        let mut example = examples.next_if(|example| example.place.1 == row);
        for (number, (column, text)) in columns.iter().zip(texts).enumerate() {
            let mut captions = text.map(|text| split(column, text)).unwrap_or_default();
            captions.retain(|caption| !caption.trim().is_empty());
            numbers.without[number] += u64::from(captions.is_empty());
            captions.iter().for_each(|text| numbers.characters[number].add(text.chars().count() as u64));
            let kept = |text: &String| Caption { column: column.clone(), text: text.chars().take(KEPT).collect() };
            if let Some(example) = &mut example {
                example.captions.extend(captions.iter().map(kept));
            }
        }
        Ok(())
    })
}

/// The examples' pictures, or why there are none.
fn pictures(survey: &Survey, summary: &Summary) -> Vec<Result<String, String>> {
    let (mut thumbnails, mut bytes) = (Thumbnails::default(), Vec::new());
    let mut picture = |example: &Example| match survey.read_image(example.place.0, example.place.1, &mut bytes) {
        Ok(true) => thumbnails.data_uri(&bytes),
        Ok(false) => Err("no image".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    summary.examples.iter().map(&mut picture).collect()
}

#[cfg(test)]
mod tests;
