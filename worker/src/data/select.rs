//! Which samples of a data set are used, and why the others are not.

use super::{
    DataError, Report, Shard, SkipReason,
    blob::Found,
    index::{Flaw, ShardIndex, SlotFooter},
    join::{Joined, State},
    report::ShardFault,
    selection::Selection,
};
use common::recipe::{DataKind, DataSet};
use std::collections::BTreeMap;

/// A caption column, and where its texts are.
#[derive(Debug, Clone)]
pub struct Column {
    /// Its name in the recipe.
    pub name: String,
    /// Whether a sample without it is broken; a column of weight 0 is a label only.
    pub needed: bool,
    /// Where its texts are.
    pub source: Source,
}

/// Where a column's texts are.
#[derive(Debug, Clone)]
pub enum Source {
    /// In members of tars with this extension.
    Member(String),
    /// In the samples' own metadata: the place among the join's own columns.
    Own(u32),
    /// In the caption table: the place among its wanted columns.
    Table(u32),
}

/// What decides.
pub struct Select<'a> {
    /// The data set's name.
    pub name: &'a str,
    /// What the recipe says.
    pub spec: &'a DataSet,
    /// The caption columns.
    pub columns: &'a [Column],
    /// The shards' indices.
    pub indices: &'a [ShardIndex],
    /// What is joined to them.
    pub joined: Option<&'a Joined>,
    /// The shards.
    pub found: &'a [Found],
}

/// The decision.
pub struct Selected {
    /// The shards with the samples that are used.
    pub shards: Vec<Shard>,
    /// Their rows.
    pub selections: Vec<Selection>,
    /// What is not used.
    pub report: Report,
    /// BLAKE3 in hex of all that orders and describes the samples.
    pub fingerprint: String,
}

/// Rows that are not used: for a reason, or because the recipe leaves them out.
type Unused = BTreeMap<u32, Option<SkipReason>>;

impl Select<'_> {
    /// Decides for all shards, in order.
    pub fn run(&self) -> Result<Selected, DataError> {
        let coverage = self.joined.and_then(|joined| joined.footer().coverage.clone());
        let duplicate_rows = coverage.as_ref().map_or(0, |coverage| coverage.rows.duplicates.count);
        let mut report = Report { duplicate_rows, join: coverage, ..Report::default() };
        let (mut shards, mut selections) = (Vec::<Shard>::new(), Vec::new());
        let mut hasher = self.hasher();
        let mut first_row = 0;
        for (index, found) in self.indices.iter().zip(self.found) {
            let footer = index.footer();
            let path = found.location();
            let stem = path.stem();
            let unused = self.unused(index, first_row)?;
            first_row += u64::from(footer.rows);
            for (row, reason) in &unused {
                match reason {
                    Some(reason) if report.skip_more(*reason, 1) => report.example(*reason, &stem, &index.key(*row)?),
                    Some(_) => {}
                    None => report.left_out += 1,
                }
                hasher.update(&row.to_le_bytes());
            }
            if footer.duplicates > 0 {
                report.skip_more(SkipReason::Duplicate, footer.duplicates);
                footer.duplicate_examples.iter().for_each(|key| report.example(SkipReason::Duplicate, &stem, key));
            }
            report.faults.extend(footer.fault.as_ref().map(|fault| ShardFault {
                path: path.clone(),
                fault: fault.what.clone(),
                used_bytes: fault.used_bytes,
            }));
            let selection = Selection::without(footer.rows, unused.keys().copied());
            let first = shards.last().map_or(0, |shard| shard.samples.end);
            let samples = first..first + u64::from(selection.len());
            for part in [stem.as_bytes(), footer.fingerprint.as_bytes()] {
                hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
            }
            hasher.update(&footer.shard.size.to_le_bytes()).update(&samples.end.to_le_bytes());
            shards.push(Shard { stem, path, samples });
            selections.push(selection);
        }
        let usable = shards.last().map_or(0, |shard| shard.samples.end);
        check_share(self.name, usable, &report, self.spec.broken_limit)?;
        if !report.is_clean() {
            let skipped = report.skipped_total();
            tracing::warn!(data = self.name, skipped, "parts of the data set are not used\n{report}");
        }
        Ok(Selected { shards, selections, report, fingerprint: hasher.finalize().to_hex().to_string() })
    }

    fn hasher(&self) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new();
        let mut add = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        };
        add(match self.spec.kind {
            DataKind::Webdataset => b"webdataset",
            DataKind::Parquet => b"parquet",
            DataKind::List => b"list",
        });
        self.columns.iter().for_each(|column| add(column.name.as_bytes()));
        add(self.joined.map_or("", |joined| &joined.footer().fingerprint).as_bytes());
        hasher
    }

    /// The rows of a shard that are not used. The first reason counts: left out, image, row of the table, columns.
    fn unused(&self, index: &ShardIndex, first_row: u64) -> Result<Unused, DataError> {
        let footer = index.footer();
        let mut unused = Unused::new();
        let range = self.spec.rows;
        let outside = |row: &u32| {
            let row = first_row + u64::from(*row);
            row < range.from || range.to.is_some_and(|to| row >= to)
        };
        let end = first_row + u64::from(footer.rows);
        if first_row < range.from || range.to.is_some_and(|to| end > to) {
            unused.extend((0..footer.rows).filter(outside).map(|row| (row, None)));
        }
        let states: Vec<(u32, State)> = match self.joined {
            None => Vec::new(),
            Some(joined) => (0..).zip(joined.states(first_row..end)?).filter(|(_, s)| *s != State::Used).collect(),
        };
        let left_out = states.iter().filter(|(_, state)| *state == State::LeftOut);
        unused.extend(left_out.map(|(row, _)| (*row, None)));
        add(&mut unused, &footer.slots[super::index::IMAGE], |flaw| match flaw {
            Flaw::Missing => Some(SkipReason::NoImage),
            Flaw::Empty => Some(SkipReason::EmptyImage),
            _ => Some(SkipReason::BrokenImage),
        });
        for (row, state) in states {
            if let State::Broken(reason) = state {
                unused.entry(row).or_insert(Some(reason));
            }
        }
        for column in self.columns {
            let Source::Member(member) = &column.source else { continue };
            match index.slot(member) {
                Some(slot) => add(&mut unused, &footer.slots[slot], |flaw| match flaw {
                    Flaw::Invalid | Flaw::Undecodable => Some(SkipReason::InvalidUtf8),
                    Flaw::Missing if column.needed => Some(SkipReason::NoText),
                    Flaw::Blank | Flaw::Empty if column.needed => Some(SkipReason::EmptyCaption),
                    _ => None,
                }),
                None if column.needed => (0..footer.rows).for_each(|row| {
                    unused.entry(row).or_insert(Some(SkipReason::NoText));
                }),
                None => {}
            }
        }
        Ok(unused)
    }
}

fn add(unused: &mut Unused, slot: &SlotFooter, reason: impl Fn(Flaw) -> Option<SkipReason>) {
    for (flaw, rows) in &slot.flaws {
        if let Some(reason) = reason(*flaw) {
            rows.iter().for_each(|row| {
                unused.entry(*row).or_insert(Some(reason));
            });
        }
    }
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
