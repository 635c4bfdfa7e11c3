//! `llm2clip data index` and `llm2clip data verify`: make the index of shards, and decode everything in them.

use super::{
    DataError,
    arguments::{Format, ShardsArgs},
    index::{Flaw, IMAGE, rewrite},
    progress::Line,
    survey::{Done, Survey},
};
use crate::storage::Location;
use anyhow::Context as _;
use serde::Serialize;
use std::time::Instant;

/// What to verify.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// What, where its index is, and how to print
    #[command(flatten)]
    pub shards: ShardsArgs,
    /// Write what cannot be decoded into the index: such samples are then left out from the start, and counted as broken
    #[arg(long)]
    pub record: bool,
}

/// Shards and their indices.
#[derive(Debug, Serialize)]
struct Indexed {
    schema: u32,
    shards: u64,
    samples: u64,
    duplicates: u64,
    faults: u64,
    shard_bytes: u64,
    index_bytes: u64,
    not_written: u64,
    made: u64,
    made_bytes: u64,
    seconds: f64,
    made_bytes_per_s: f64,
}

/// Makes the indices that are missing or stale, and prints what they hold.
pub fn index(args: &ShardsArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    let survey = args.survey()?;
    let seconds = started.elapsed().as_secs_f64();
    let sum = |of: fn(&super::index::ShardIndex) -> u64| survey.indices.iter().map(of).sum();
    let indexed = Indexed {
        schema: 1,
        shards: survey.paths.len() as u64,
        samples: survey.rows(),
        duplicates: sum(|index| index.footer().duplicates),
        faults: sum(|index| u64::from(index.footer().fault.is_some())),
        shard_bytes: sum(|index| index.footer().shard.size),
        index_bytes: sum(|index| index.length()),
        not_written: sum(|index| u64::from(!index.is_kept())),
        made: survey.made,
        made_bytes: survey.made_bytes,
        seconds,
        made_bytes_per_s: survey.made_bytes as f64 / seconds,
    };
    match args.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&indexed).context("an index is JSON")?),
        Format::Text => println!(
            "{} samples in {} shards; {} shards were read ({:.1} MB, {:.1} s), the others' indices were good\n\
             {} members are there twice, {} shards break off; `llm2clip data inspect` names them",
            indexed.samples,
            indexed.shards,
            indexed.made,
            indexed.made_bytes as f64 / 1e6,
            indexed.seconds,
            indexed.duplicates,
            indexed.faults
        ),
    }
    // A folder of images is listed at each start: of it nothing is written.
    let folders =
        survey.paths.iter().filter(|path| matches!(path, Location::Local(path) if path.is_dir())).count() as u64;
    let lost = indexed.not_written.saturating_sub(folders);
    anyhow::ensure!(
        lost == 0,
        "{lost} indices could not be written, and the next job would make them again: name a folder that can be written \
         with --index FOLDER, or set LLM2CLIP_CACHE or HOME"
    );
    Ok(())
}

/// A sample or a shard that is bad.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Bad {
    shard: Location,
    /// The sample; absent where the shard itself is meant.
    key: Option<String>,
    reason: String,
}

/// What was verified.
#[derive(Debug, Serialize)]
struct Verified {
    schema: u32,
    shards: u64,
    samples: u64,
    image_bytes: u64,
    seconds: f64,
    images_per_s: f64,
    recorded: bool,
    bad: Vec<Bad>,
}

/// Decodes everything and lists what is bad; an error when something is.
pub fn main(args: &VerifyArgs) -> anyhow::Result<()> {
    let survey = args.shards.survey()?;
    let verified = verify(&survey, args.record)?;
    match args.shards.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&verified).context("a list is JSON")?),
        Format::Text => {
            for bad in &verified.bad {
                let key = bad.key.as_ref().map_or_else(String::new, |key| format!(" {key}"));
                println!("{}{key}: {}", bad.shard, bad.reason);
            }
            println!("{} samples in {} shards, {} bad", verified.samples, verified.shards, verified.bad.len());
        }
    }
    anyhow::ensure!(verified.bad.is_empty(), "{} are bad", verified.bad.len());
    Ok(())
}

fn verify(survey: &Survey, record: bool) -> Result<Verified, DataError> {
    let started = Instant::now();
    let line = Line::new("decoding", "samples");
    let done = Done::new(&line, survey.rows());
    let (mut bad, mut samples, mut image_bytes) = (Vec::new(), 0, 0);
    for (shard, path) in survey.paths.iter().enumerate() {
        let mut undecodable = Vec::new();
        let footer = survey.indices[shard].footer();
        let mut tell = |key: Option<&str>, reason: String| {
            bad.push(Bad { shard: path.clone(), key: key.map(str::to_owned), reason });
        };
        for (row, seen) in (0..).zip(survey.look(shard, &done)?) {
            let key = Some(seen.key.as_str());
            match &seen.image {
                None => tell(key, if seen.empty { "image of zero bytes" } else { "no image" }.to_owned()),
                Some(image) => {
                    image_bytes += image.bytes;
                    if let Err(reason) = &image.size {
                        undecodable.push(row);
                        tell(key, reason.clone());
                    }
                }
            }
            if seen.text == Err(Flaw::Invalid) {
                tell(key, "caption is no UTF-8".to_owned());
            }
        }
        footer.duplicate_examples.iter().for_each(|key| tell(Some(key), "a member of it is there twice".to_owned()));
        if let Some(fault) = &footer.fault {
            tell(None, format!("{}: used up to byte {}", fault.what, fault.used_bytes));
        }
        if record {
            let mut footer = footer.clone();
            footer.verified = true;
            footer.slots[IMAGE].flaws.remove(&Flaw::Undecodable);
            if !undecodable.is_empty() {
                footer.slots[IMAGE].flaws.insert(Flaw::Undecodable, undecodable);
            }
            let io = |source| DataError::io("write the index of", path, source);
            rewrite(&survey.indices[shard], &footer).map_err(io)?;
        }
        samples += u64::from(footer.rows);
    }
    let seconds = started.elapsed().as_secs_f64();
    let (shards, images_per_s) = (survey.paths.len() as u64, samples as f64 / seconds);
    Ok(Verified { schema: 1, shards, samples, image_bytes, seconds, images_per_s, recorded: record, bad })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{survey::Shards, tests::storage};
    use common::recipe::IndexPlace;
    use std::path::Path;

    #[test]
    fn what_cannot_be_decoded_is_listed_and_once_recorded_known_to_the_index() {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/emoji/emoji-wds/val/00000.tar");
        let mut bytes = std::fs::read(source).unwrap();
        bytes[512..516].copy_from_slice(b"<htm");
        let path = folder.path().join("a.tar");
        std::fs::write(&path, bytes).unwrap();
        let open = || {
            let paths = vec![path.clone().into()];
            let shards = Shards { paths, index: IndexPlace::Beside, ..Shards::default() };
            Survey::open(&storage(), &shards).unwrap()
        };
        let survey = open();
        let verified = verify(&survey, true).unwrap();
        assert_eq!((verified.samples, verified.bad.len(), survey.made), (320, 1, 1));
        let known = open();
        assert_eq!(known.made, 0, "the index beside the tar is still good");
        let footer = known.indices[0].footer();
        assert_eq!((footer.verified, footer.slots[IMAGE].flaws[&Flaw::Undecodable].as_slice()), (true, &[0][..]));
        assert_eq!(footer.fingerprint, survey.indices[0].footer().fingerprint);
    }
}
