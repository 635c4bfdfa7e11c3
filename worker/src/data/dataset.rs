//! A data set's index: every usable sample's image, key and captions.

use super::{
    DataError, Report, SkipReason,
    captions::Captions,
    files::Files,
    glob,
    index::Index,
    scan::{Extent, RawSample, ShardScan, scan},
};
use common::{
    ids::SampleIndex,
    recipe::{CaptionColumn, DataSet},
};
use std::{
    ops::Range,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Threads that read the shards' headers.
const SCANNERS: usize = 8;
/// The caption column that is the tar's own member.
pub const TEXT_MEMBER: &str = ".txt";

/// One tar of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// The file's name without `.tar`.
    pub stem: String,
    /// The file.
    pub path: PathBuf,
    /// Its samples in the data set.
    pub samples: Range<u64>,
}

/// An open data set. Samples are numbered in the order of the shards and, in them, of the tars' members.
#[derive(Debug)]
pub struct Dataset {
    name: String,
    shards: Vec<Shard>,
    columns: Vec<CaptionColumn>,
    index: Index,
    fingerprint: String,
    report: Report,
    files: Files,
}

impl Dataset {
    /// Reads the index of all shards.
    ///
    /// # Errors
    /// When a shard or the caption table is missing or no tar, or more samples are broken than the recipe bears.
    pub fn open(name: &str, spec: &DataSet) -> Result<Self, DataError> {
        let mut paths = Vec::new();
        for pattern in &spec.shards {
            paths.extend(glob::expand(pattern)?);
        }
        let table = read_table(name, spec)?;
        let mut report =
            Report { duplicate_rows: table.as_ref().map_or(0, |table| table.duplicate_rows), ..Report::default() };
        let mut index = Index::default();
        let mut shards = Vec::new();
        for (path, scanned) in paths.iter().zip(scan_all(&paths)) {
            let scanned = scanned?;
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let first = index.len();
            for sample in &scanned.samples {
                match texts(sample, &spec.captions.columns, table.as_ref()) {
                    Ok((image, texts)) => index.push(shards.len() as u32, image, &texts),
                    Err(reason) => report.skip(reason, &stem, &sample.key),
                }
            }
            scanned.duplicates.iter().for_each(|key| report.skip(SkipReason::Duplicate, &stem, key));
            report.faults.extend(scanned.fault);
            shards.push(Shard { stem, path: path.clone(), samples: first..index.len() });
        }
        check_share(name, index.len(), &report, spec.broken_limit)?;
        if !report.is_clean() {
            tracing::warn!(
                data = name,
                skipped = report.skipped_total(),
                "parts of the data set are not used\n{report}"
            );
        }
        let columns = spec.captions.columns.clone();
        let fingerprint = index.fingerprint(spec.kind, &shards, &columns);
        Ok(Self { name: name.to_owned(), shards, columns, index, fingerprint, report, files: Files::new(paths) })
    }

    /// The data set's name in the recipe.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many usable samples there are; at least one.
    #[expect(clippy::len_without_is_empty, reason = "an empty data set cannot be opened")]
    pub fn len(&self) -> u64 {
        self.index.len()
    }

    /// The shards in order.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The caption columns in the recipe's order.
    pub fn columns(&self) -> &[CaptionColumn] {
        &self.columns
    }

    /// A sample's caption in a column, by the column's place.
    ///
    /// # Panics
    /// When there is no such sample or column.
    pub fn caption(&self, sample: SampleIndex, column: usize) -> &str {
        assert!(column < self.columns.len(), "data set `{}` has no caption column {column}", self.name);
        self.index.text(self.texts_of(sample) + 1 + column)
    }

    /// A sample's key.
    ///
    /// # Panics
    /// When there is no such sample.
    pub fn key(&self, sample: SampleIndex) -> &str {
        self.index.text(self.texts_of(sample))
    }

    /// BLAKE3 in hex over all that the index says: layout, shards' names, keys, images' places, captions.
    pub fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    /// What is not used, and why.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Reads the bytes of a sample's image into `bytes`.
    pub(super) fn read_image(&self, sample: SampleIndex, bytes: &mut Vec<u8>) -> Result<(), DataError> {
        let (shard, image) = self.index.image(sample);
        self.files.read(shard, image.offset, image.length as usize, bytes)
    }

    fn texts_of(&self, sample: SampleIndex) -> usize {
        sample.0 as usize * (1 + self.columns.len())
    }
}

fn read_table(name: &str, spec: &DataSet) -> Result<Option<Captions>, DataError> {
    let wanted: Vec<&str> =
        spec.captions.columns.iter().map(|column| column.name.as_str()).filter(|name| *name != TEXT_MEMBER).collect();
    match (&spec.captions.table, wanted.first()) {
        (Some(table), _) => Captions::read(table, &wanted).map(Some),
        (None, None) => Ok(None),
        (None, Some(column)) => Err(DataError::NoTable { name: name.to_owned(), column: (*column).to_owned() }),
    }
}

/// Reads the shards' headers on a few threads; the results are in the shards' order.
fn scan_all(paths: &[PathBuf]) -> Vec<Result<ShardScan, DataError>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some((i, path)) = Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, paths.get(i)?))) {
            done.push((i, scan(path)));
        }
        done
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(SCANNERS).min(paths.len());
    let mut all: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Vec<_>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().flat_map(join).collect()
    });
    all.sort_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, scanned)| scanned).collect()
}

/// A sample's image and its texts: the key, then the captions; or why it is not used.
fn texts<'a>(
    sample: &'a RawSample,
    columns: &[CaptionColumn],
    table: Option<&'a Captions>,
) -> Result<(Extent, Vec<&'a str>), SkipReason> {
    let image = sample.usable_image()?;
    let row = table.map(|table| Ok((table, table.row(&sample.key).ok_or(SkipReason::NoRow)?))).transpose()?;
    let mut texts = vec![sample.key.as_str()];
    let mut place = 0;
    for column in columns {
        let text = if column.name == TEXT_MEMBER {
            sample.usable_text()
        } else {
            place += 1;
            row.and_then(|(table, row)| table.caption(row, place - 1)).ok_or(SkipReason::EmptyCaption)
        };
        match text {
            Ok(text) if column.weight == 0 || !text.trim().is_empty() => texts.push(text),
            // A column that is never drawn is a label only.
            Err(SkipReason::NoText | SkipReason::EmptyCaption) if column.weight == 0 => texts.push(""),
            Ok(_) => return Err(SkipReason::EmptyCaption),
            Err(reason) => return Err(reason),
        }
    }
    Ok((image, texts))
}

fn check_share(name: &str, usable: u64, report: &Report, limit: f64) -> Result<(), DataError> {
    let (name, skipped) = (name.to_owned(), report.skipped_total());
    let total = usable + skipped;
    let share = skipped as f64 / total.max(1) as f64;
    if share > limit {
        let (percent, report) = (100.0 * share, report.to_string());
        return Err(DataError::TooManyBroken { name, skipped, total, percent, limit, report });
    }
    if usable == 0 {
        return Err(DataError::Empty { name, report: report.to_string() });
    }
    Ok(())
}
