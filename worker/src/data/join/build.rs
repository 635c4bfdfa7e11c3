//! Computing a join: one pass over the samples' metadata, one over the table, and a hash of 16 bytes for each value
//! instead of the value. Memory: 24 bytes a sample for the hashes and 17 for the result, whatever the texts' length.

use super::{Coverage, Footer, From, Joined, NONE, OwnFields, State};
use crate::{
    data::{
        DataError, SkipReason,
        blob::{Blob, Found},
        container::Writer,
        index::{Draft, Places, ShardIndex, Store, in_parallel},
        source::Stat,
        table,
    },
    storage::Storage,
};
use common::recipe::Unmatched;
use std::{
    collections::BTreeMap,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

/// Small shards whose metadata are read at once.
const WAVE: usize = 16;
/// The most bytes of texts that are kept in memory when no folder can be written.
const MEMORY: usize = 1 << 30;

/// A wanted column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name, or its path in JSON.
    pub name: String,
    /// Whether a sample without it is broken; false for columns that are labels only.
    pub needed: bool,
}

/// What is to be joined.
pub struct Plan<'a> {
    /// The data set's name in messages.
    pub name: &'a str,
    /// The shards.
    pub indices: &'a [ShardIndex],
    /// Columns of the samples' own.
    pub own: Vec<Wanted>,
    /// Own fields, and the text that a sample must have there to be used.
    pub only: &'a BTreeMap<String, String>,
    /// The caption table.
    pub table: Option<TablePlan>,
}

/// A caption table, and how rows are found in it.
pub struct TablePlan {
    /// What they are read through.
    pub storage: Arc<Storage>,
    /// Its files, in order.
    pub files: Vec<Found>,
    /// What they are now.
    pub stats: Vec<Stat>,
    /// The column by which a row is found.
    pub key: String,
    /// What of a sample is looked up there: `key` or an own field.
    pub join: String,
    /// The columns that are wanted.
    pub columns: Vec<Wanted>,
    /// What becomes of what is left over.
    pub unmatched: Unmatched,
}

impl Plan<'_> {
    /// BLAKE3 in hex of all that the result depends on.
    fn identity(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut add = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        };
        add("join-1");
        for index in self.indices {
            add(&format!("{}/{}/{}", index.footer().kind, index.footer().rows, index.footer().fingerprint));
        }
        add(&format!("{:?} {:?}", self.own, self.only));
        if let Some(table) = &self.table {
            let files: Vec<String> = table.files.iter().map(|file| file.location().to_string()).collect();
            add(&format!("{files:?} {:?}", table.stats));
            add(&format!("{} {} {:?} {:?}", table.key, table.join, table.columns, table.unmatched));
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// The fields of samples' own that a join reads, in their order: columns, those that decide, and the one that a table is joined by.
pub fn own_fields<'a>(
    columns: impl Iterator<Item = &'a str>,
    only: &BTreeMap<String, String>,
    join: Option<&str>,
) -> Vec<String> {
    let only = only.keys().map(String::as_str);
    columns.map(str::to_owned).chain(only.chain(join.filter(|join| *join != "key")).map(str::to_owned)).collect()
}

/// Opens the join if it was computed before, else computes it and keeps it.
///
/// Where no folder can be written it is held in memory, if it is no larger than 1 GiB.
pub fn open(plan: &Plan<'_>, fields: &dyn OwnFields, places: &Places) -> Result<Joined, DataError> {
    let identity = plan.identity();
    let path = places.folder().map(|folder| folder.join(format!("join-{}.l2c", &identity[..32])));
    if let Some(path) = path.as_ref().filter(|path| path.exists()) {
        match Joined::open(Store::File(path.clone(), OnceLock::new())) {
            Ok(joined) if joined.footer.identity == identity => return Ok(joined),
            Ok(_) => {}
            Err(error) => tracing::info!(join = %path.display(), %error, "the join is computed anew"),
        }
    }
    let draft = path.as_deref().and_then(|path| match Draft::new(path) {
        Ok(draft) => Some((draft, path)),
        Err(error) => {
            tracing::warn!(join = %path.display(), %error, "joined captions cannot be kept there: they are held in memory");
            None
        }
    });
    let Some((draft, path)) = draft else {
        let memory = PathBuf::from("memory");
        let sink = Build::new(plan, Memory(Vec::new()), &memory)?.run(plan, fields, identity)?;
        return opened(Store::Memory(sink.0), &memory);
    };
    let file = draft.file().try_clone().map_err(keep(path))?;
    let sink = Build::new(plan, BufWriter::with_capacity(1 << 20, file), path)?.run(plan, fields, identity)?;
    sink.into_inner().map_err(|error| keep(path)(error.into_error()))?;
    draft.publish().map_err(keep(path))?;
    opened(Store::File(path.to_owned(), OnceLock::new()), path)
}

fn opened(store: Store, path: &Path) -> Result<Joined, DataError> {
    Joined::open(store)
        .map_err(|error| DataError::DamagedIndex { path: path.to_owned().into(), reason: error.to_string() })
}

fn keep(path: &Path) -> impl Fn(io::Error) -> DataError {
    move |source| DataError::Keep { path: path.to_owned().into(), source }
}

/// Bytes in memory, so many and no more.
struct Memory(Vec<u8>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MEMORY {
            return Err(io::Error::other("it would take more than 1 GiB of memory"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A value to join by: the first 16 bytes of its BLAKE3. Among 3e9 values two share one with a chance of 1e-20.
fn hash(value: &str) -> (u64, u64) {
    let digest = blake3::hash(value.as_bytes());
    let half = |from: usize| u64::from_le_bytes(digest.as_bytes()[from..from + 8].try_into().expect("eight bytes"));
    (half(0), half(8))
}

struct Build<'a, W: Write> {
    writer: Writer<W>,
    path: &'a Path,
    /// For each shard the number of its first row.
    first: Vec<u64>,
    own_at: Vec<u64>,
    table_at: Vec<u64>,
    unpaired_at: Vec<u64>,
    states: Vec<State>,
    /// Values to join by, with their samples.
    values: Vec<(u64, u64, u64)>,
    coverage: Coverage,
    hasher: blake3::Hasher,
}

impl<'a, W: Write> Build<'a, W> {
    fn new(plan: &Plan<'_>, sink: W, path: &'a Path) -> Result<Self, DataError> {
        let mut first = vec![0u64];
        plan.indices.iter().for_each(|index| first.push(first[first.len() - 1] + u64::from(index.footer().rows)));
        let rows = first[first.len() - 1] as usize;
        let coverage = plan.table.as_ref().map_or_else(Coverage::default, |table| Coverage {
            join: table.join.clone(),
            key: table.key.clone(),
            ..Coverage::default()
        });
        Ok(Self {
            writer: Writer::new(sink).map_err(keep(path))?,
            path,
            first,
            own_at: vec![0; rows],
            table_at: vec![0; rows],
            unpaired_at: Vec::new(),
            states: vec![State::Used; rows],
            values: Vec::new(),
            coverage,
            hasher: blake3::Hasher::new(),
        })
    }

    fn run(mut self, plan: &Plan<'_>, fields: &dyn OwnFields, identity: String) -> Result<W, DataError> {
        self.read_own(plan, fields)?;
        if let Some(table) = &plan.table {
            if table.join == "key" {
                self.read_keys(plan)?;
            }
            self.values.sort_unstable();
            self.read_table(table)?;
            self.settle(plan, table)?;
        }
        self.finish(plan, identity)
    }

    /// Reads what the samples' metadata say.
    fn read_own(&mut self, plan: &Plan<'_>, fields: &dyn OwnFields) -> Result<(), DataError> {
        let join = plan.table.as_ref().map(|table| table.join.as_str());
        let names = own_fields(plan.own.iter().map(|column| column.name.as_str()), plan.only, join);
        if names.is_empty() {
            return Ok(());
        }
        let shards = plan.indices.len();
        if !fields.small() {
            for shard in 0..shards {
                let mut row = self.first[shard];
                fields.read(shard as u32, &names, &mut |texts| {
                    row += 1;
                    self.own(plan, row - 1, texts)
                })?;
            }
            return Ok(());
        }
        for wave in (0..shards).step_by(WAVE) {
            let one = |i: usize| {
                let mut read = Vec::new();
                fields.read((wave + i) as u32, &names, &mut |texts| {
                    read.push(texts.iter().map(|text| text.map(str::to_owned)).collect::<Vec<_>>());
                    Ok(())
                })?;
                Ok::<_, DataError>(read)
            };
            for (i, read) in in_parallel(WAVE.min(shards - wave), one).into_iter().enumerate() {
                for (row, texts) in read?.into_iter().enumerate() {
                    let texts: Vec<Option<&str>> = texts.iter().map(Option::as_deref).collect();
                    self.own(plan, self.first[wave + i] + row as u64, &texts)?;
                }
            }
        }
        Ok(())
    }

    /// Takes a sample's own fields: the wanted columns, then those that decide, then the one to join by.
    fn own(&mut self, plan: &Plan<'_>, row: u64, texts: &[Option<&str>]) -> Result<(), DataError> {
        let Some(state) = self.states.get_mut(row as usize) else { return Ok(()) };
        let (own, rest) = texts.split_at(plan.own.len());
        if !plan.only.values().zip(rest).all(|(wanted, text)| *text == Some(wanted.as_str())) {
            *state = State::LeftOut;
            return Ok(());
        }
        if !whole(&plan.own, own) {
            *state = State::Broken(SkipReason::EmptyCaption);
        }
        if !own.is_empty() {
            self.own_at[row as usize] = self.record(From::Own, &[row], own)?;
        }
        if let Some(value) = rest.get(plan.only.len()) {
            self.value(row, *value);
        }
        Ok(())
    }

    fn value(&mut self, row: u64, value: Option<&str>) {
        match value.filter(|value| !value.is_empty()) {
            Some(value) => {
                let (a, b) = hash(value);
                self.values.push((a, b, row));
            }
            None => self.states[row as usize] = State::Broken(SkipReason::NoJoinField),
        }
    }

    fn read_keys(&mut self, plan: &Plan<'_>) -> Result<(), DataError> {
        for (shard, index) in plan.indices.iter().enumerate() {
            let mut row = self.first[shard];
            index.keys(|key| {
                if self.states[row as usize] != State::LeftOut {
                    self.value(row, Some(key));
                }
                row += 1;
            })?;
        }
        Ok(())
    }

    fn read_table(&mut self, table: &TablePlan) -> Result<(), DataError> {
        let columns: Vec<String> =
            std::iter::once(&table.key).chain(table.columns.iter().map(|column| &column.name)).cloned().collect();
        for file in &table.files {
            let opened = Blob::open(&table.storage, file);
            let file = opened.map_err(|source| DataError::io("open", &file.location(), source))?;
            table::read(&file, &columns, &mut |texts| self.row(table, texts[0], &texts[1..]))?;
        }
        Ok(())
    }

    /// Takes a row of the table.
    fn row(&mut self, table: &TablePlan, value: Option<&str>, texts: &[Option<&str>]) -> Result<(), DataError> {
        let side = &mut self.coverage.rows;
        let Some(value) = value.filter(|value| !value.is_empty()) else {
            side.without.add(|| texts.iter().flatten().next().map_or_else(String::new, |text| start(text)));
            return Ok(());
        };
        let (a, b) = hash(value);
        let from = self.values.partition_point(|(x, y, _)| (*x, *y) < (a, b));
        let samples: Vec<u64> =
            self.values[from..].iter().take_while(|(x, y, _)| (*x, *y) == (a, b)).map(|(_, _, row)| *row).collect();
        let Some(first) = samples.first() else {
            side.unmatched.add(|| value.to_owned());
            if table.unmatched == Unmatched::CaptionOnly && whole(&table.columns, texts) {
                let at = self.record(From::Table, &[], texts)?;
                self.unpaired_at.push(at);
            }
            return Ok(());
        };
        if self.table_at[*first as usize] != 0 {
            side.duplicates.add(|| value.to_owned());
            return Ok(());
        }
        side.matched += 1;
        let at = self.record(From::Table, &samples, texts)?;
        for sample in samples {
            self.table_at[sample as usize] = at;
            let state = &mut self.states[sample as usize];
            if *state == State::Used && !whole(&table.columns, texts) {
                *state = State::Broken(SkipReason::EmptyCaption);
            }
        }
        Ok(())
    }

    /// Says of every sample without a row what becomes of it, and counts the samples' side.
    fn settle(&mut self, plan: &Plan<'_>, table: &TablePlan) -> Result<(), DataError> {
        let key = |row: u64| {
            let shard = self.first.partition_point(|first| *first <= row) - 1;
            plan.indices[shard].key((row - self.first[shard]) as u32).unwrap_or_default()
        };
        for pair in self.values.windows(2).filter(|pair| (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1)) {
            self.coverage.samples.duplicates.add(|| key(pair[1].2));
        }
        for (row, at) in self.table_at.iter().enumerate() {
            if self.states[row] == State::LeftOut {
                continue;
            }
            let side = &mut self.coverage.samples;
            let counted = match (self.states[row], at) {
                (State::Broken(SkipReason::NoJoinField), _) => &mut side.without,
                (_, 0) => &mut side.unmatched,
                _ => {
                    side.matched += 1;
                    continue;
                }
            };
            counted.add(|| key(row as u64));
            match table.unmatched {
                Unmatched::Skip | Unmatched::CaptionOnly => self.states[row] = State::LeftOut,
                _ if *at == 0 && self.states[row] == State::Used => {
                    self.states[row] = State::Broken(SkipReason::NoRow);
                }
                _ => {}
            }
        }
        let (unmatched, without) = (&self.coverage.samples.unmatched, &self.coverage.samples.without);
        let count = unmatched.count + without.count;
        if table.unmatched == Unmatched::Error && count > 0 {
            let examples = [unmatched.examples.as_slice(), &without.examples].concat().join(", ");
            return Err(DataError::Unmatched { name: plan.name.to_owned(), count, examples });
        }
        Ok(())
    }

    /// Appends a record of texts and returns its place, counted from 1.
    fn record(&mut self, from: From, samples: &[u64], texts: &[Option<&str>]) -> Result<u64, DataError> {
        let at = self.writer.position() + 1;
        let mut lengths = Vec::with_capacity(texts.len() * 4);
        for text in texts {
            let length = text.map_or(NONE, |text| u32::try_from(text.len()).unwrap_or(NONE));
            lengths.extend(length.to_le_bytes());
        }
        self.hasher.update(&[from as u8]);
        samples.iter().for_each(|sample| {
            self.hasher.update(&sample.to_le_bytes());
        });
        self.hasher.update(&lengths);
        self.writer.append(&lengths).map_err(keep(self.path))?;
        for text in texts.iter().flatten() {
            self.hasher.update(text.as_bytes());
            self.writer.append(text.as_bytes()).map_err(keep(self.path))?;
        }
        Ok(at)
    }

    fn finish(mut self, plan: &Plan<'_>, identity: String) -> Result<W, DataError> {
        let records = self.writer.position();
        for at in self.own_at.iter().chain(&self.table_at).chain(&self.unpaired_at) {
            self.writer.append(&at.to_le_bytes()).map_err(keep(self.path))?;
        }
        let states: Vec<u8> = self.states.iter().map(|state| state.byte()).collect();
        self.writer.append(&states).map_err(keep(self.path))?;
        self.hasher.update(&states);
        let footer = Footer {
            identity,
            rows: states.len() as u64,
            own_columns: plan.own.len() as u32,
            table_columns: plan.table.as_ref().map_or(0, |table| table.columns.len() as u32),
            unpaired: self.unpaired_at.len() as u64,
            records,
            coverage: plan.table.is_some().then_some(self.coverage),
            fingerprint: self.hasher.finalize().to_hex().to_string(),
        };
        self.writer.finish(&footer).map_err(keep(self.path))
    }
}

/// Whether every needed text is there and more than white space.
fn whole(columns: &[Wanted], texts: &[Option<&str>]) -> bool {
    let there = |text: &Option<&str>| text.is_some_and(|text| !text.trim().is_empty());
    columns.iter().zip(texts).all(|(column, text)| !column.needed || there(text))
}

/// The first characters of a text, as an example.
fn start(text: &str) -> String {
    text.chars().take(40).collect()
}
