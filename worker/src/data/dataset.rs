//! A data set: its shards' indices, the texts that were joined to them, and which samples are used.

use super::{
    BrokenLimit, DataError, Report,
    blob::Found,
    files::Files,
    glob,
    images::{Images, Lists, ParquetImages, Parquets},
    index::{Places, Progress, ShardIndex, ShardReader, Tars, open_all},
    join::{self, From, Gathered, GatheringTars, Joined, OwnFields, Plan, RowColumns, TablePlan, TarMetadata, Wanted},
    select::{Column, Select, Source},
    selection::Selection,
};
use crate::storage::{Block, Location, Storage};
use common::{
    ids::SampleIndex,
    recipe::{CaptionColumn, DataKind, DataSet},
};
use std::{ops::Range, sync::Arc};

/// One shard of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// The file's or object's name without its ending.
    pub stem: String,
    /// Where it lies.
    pub path: Location,
    /// Its samples in the data set.
    pub samples: Range<u64>,
}

/// An open data set. Samples are numbered in the order of the shards and, in them, of the shards' own order.
///
/// In memory are a few hundred bytes a shard; keys, captions and images' places are read when they are asked for.
#[derive(Debug)]
pub struct Dataset {
    name: String,
    shards: Vec<Shard>,
    columns: Vec<CaptionColumn>,
    sources: Vec<Source>,
    indices: Vec<ShardIndex>,
    selections: Vec<Selection>,
    /// The row of each shard's first sample among all rows.
    first_rows: Vec<u64>,
    joined: Option<Joined>,
    images: Images,
    files: Files,
    fingerprint: String,
    report: Report,
    broken_limit: f64,
}

impl Dataset {
    /// Opens a data set; what is not indexed yet is indexed, and what is not joined yet is joined.
    ///
    /// # Errors
    /// When a shard or the caption table is missing or no such file, or more samples are broken than the recipe bears.
    pub fn open(storage: &Arc<Storage>, name: &str, spec: &DataSet) -> Result<Self, DataError> {
        Self::open_with(storage, name, spec, &|_| {})
    }

    /// As [`Dataset::open`]; `progress` hears of every shard that is done.
    pub fn open_with(
        storage: &Arc<Storage>,
        name: &str,
        spec: &DataSet,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Self, DataError> {
        let found = glob::expand_all(storage, &spec.shards)?;
        let columns = sources(name, spec)?;
        let places = Places::new(&spec.index);
        let gathered = gathered(spec, &columns, &found, &places);
        let indices = match &gathered {
            Some(gathered) => open_all(storage, &found, &GatheringTars(gathered), &places, progress)?,
            None => open_all(storage, &found, reader(spec).as_ref(), &places, progress)?,
        };
        let stats = indices.iter().map(|index| index.footer().shard.clone());
        let files = Files::new(storage, found.iter().cloned().zip(stats).collect());
        let joined = joined(name, spec, &columns, (&indices, gathered.as_ref()), &files, &places)?;
        let joined_to = joined.as_ref();
        let select = Select { name, spec, columns: &columns, indices: &indices, joined: joined_to, found: &found };
        let selected = select.run()?;
        let mut first_rows = vec![0];
        indices
            .iter()
            .for_each(|index| first_rows.push(first_rows[first_rows.len() - 1] + u64::from(index.footer().rows)));
        Ok(Self {
            name: name.to_owned(),
            shards: selected.shards,
            columns: spec.captions.columns.clone(),
            sources: columns.into_iter().map(|column| column.source).collect(),
            images: images(spec, &found)?,
            indices,
            selections: selected.selections,
            first_rows,
            joined,
            files,
            fingerprint: selected.fingerprint,
            report: selected.report,
            broken_limit: spec.broken_limit,
        })
    }

    /// The data set's name in the recipe.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many usable samples there are; at least one.
    #[expect(clippy::len_without_is_empty, reason = "an empty data set cannot be opened")]
    pub fn len(&self) -> u64 {
        self.shards.last().map_or(0, |shard| shard.samples.end)
    }

    /// The shards in order.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The caption columns in the recipe's order.
    pub fn columns(&self) -> &[CaptionColumn] {
        &self.columns
    }

    /// A sample's caption in a column, by the column's place; empty where a column of weight 0 has none. Of a column of
    /// several captions (`caption[*]`) it is the first.
    ///
    /// # Panics
    /// When there is no such sample or column.
    pub fn caption(&self, sample: SampleIndex, column: usize) -> Result<String, DataError> {
        if self.columns[column].name.ends_with("[*]") {
            return Ok(self.captions(sample, column)?.into_iter().next().unwrap_or_default());
        }
        self.text(sample, column)
    }

    /// All captions of a sample in a column: several of a column such as `.caption[*]`, or the lines of `.txt[*]`, else one.
    ///
    /// # Panics
    /// When there is no such sample or column.
    pub fn captions(&self, sample: SampleIndex, column: usize) -> Result<Vec<String>, DataError> {
        let text = self.text(sample, column)?;
        if !self.columns[column].name.ends_with("[*]") {
            return Ok(vec![text]);
        }
        if let Source::Member(_) = self.sources[column] {
            return Ok(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect());
        }
        let texts = serde_json::from_str(&text);
        let path = || Location::Local("captions".into());
        texts.map_err(|error| DataError::DamagedIndex { path: path(), reason: error.to_string() })
    }

    /// All captions of a column, and for each the sample that it belongs to. Images have five to seven in COCO: whose a
    /// caption is, is told and not computed from its place.
    ///
    /// # Panics
    /// When there is no such column.
    pub fn texts_with_samples(&self, column: usize) -> Result<(Vec<String>, Vec<SampleIndex>), DataError> {
        let (mut texts, mut samples) = (Vec::new(), Vec::new());
        for sample in (0..self.len()).map(SampleIndex) {
            texts.extend(self.captions(sample, column)?);
            samples.resize(texts.len(), sample);
        }
        Ok((texts, samples))
    }

    fn text(&self, sample: SampleIndex, column: usize) -> Result<String, DataError> {
        assert!(column < self.columns.len(), "data set `{}` has no caption column {column}", self.name);
        let (shard, row) = self.place(sample);
        let (from, column) = match &self.sources[column] {
            Source::Member(member) => return self.member(shard, row, member),
            Source::Own(column) => (From::Own, *column),
            Source::Table(column) => (From::Table, *column),
        };
        let joined = self.joined.as_ref().expect("there is a join where a column comes of one");
        let text = joined.text(self.first_rows[shard as usize] + u64::from(row), from, column)?;
        Ok(text.unwrap_or_default())
    }

    /// How many rows of the caption table have no sample and are kept as text (`captions.unmatched = "caption-only"`).
    pub fn unpaired(&self) -> u64 {
        self.joined.as_ref().map_or(0, |joined| joined.footer().unpaired)
    }

    /// A caption of such a row, by the column's place; empty for columns that are not the table's.
    ///
    /// # Panics
    /// When there is no such row or column.
    pub fn unpaired_caption(&self, row: u64, column: usize) -> Result<String, DataError> {
        let (Some(joined), Source::Table(column)) = (&self.joined, &self.sources[column]) else {
            return Ok(String::new());
        };
        Ok(joined.unpaired(row, *column)?.unwrap_or_default())
    }

    /// A sample's key.
    ///
    /// # Panics
    /// When there is no such sample.
    pub fn key(&self, sample: SampleIndex) -> Result<String, DataError> {
        let (shard, row) = self.place(sample);
        self.indices[shard as usize].key(row)
    }

    /// BLAKE3 in hex over all that orders and describes the samples: the shards' names, sizes, counts and indices, the
    /// columns, the joined texts, and what is left out.
    pub fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    /// What is not used, and why.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// How many of the samples may turn out to be broken.
    pub fn limit(&self) -> BrokenLimit {
        BrokenLimit { name: self.name.clone(), samples: self.len(), share: self.broken_limit }
    }

    /// Reads the bytes of a sample's image into `bytes`.
    pub fn read_image(&self, sample: SampleIndex, bytes: &mut Vec<u8>) -> Result<(), DataError> {
        let (shard, row) = self.place(sample);
        self.images.read(&self.files, shard, &self.indices[shard as usize], row, bytes)
    }

    /// What the images are read through, when any of them lies in object storage.
    pub fn object_storage(&self) -> Option<Arc<Storage>> {
        self.images.in_objects(&self.files).then(|| self.files.storage().clone())
    }

    /// Hands on the blocks of object storage that a sample's image lies in; none when it lies in a file.
    pub fn image_blocks(&self, sample: SampleIndex, each: &mut dyn FnMut(Block)) -> Result<(), DataError> {
        let (shard, row) = self.place(sample);
        self.images.blocks(&self.files, shard, &self.indices[shard as usize], row, each)
    }

    /// A sample's shard, and its row there.
    fn place(&self, sample: SampleIndex) -> (u32, u32) {
        let shard = self.shards.partition_point(|shard| shard.samples.end <= sample.0);
        assert!(shard < self.shards.len(), "data set `{}` has no sample {}", self.name, sample.0);
        let number = (sample.0 - self.shards[shard].samples.start) as u32;
        (shard as u32, self.selections[shard].row(number))
    }

    fn member(&self, shard: u32, row: u32, name: &str) -> Result<String, DataError> {
        let index = &self.indices[shard as usize];
        let Some(slot) = index.slot(name) else { return Ok(String::new()) };
        let Some(place) = index.place(row, slot)? else { return Ok(String::new()) };
        let (extent, mut bytes) = (place.extent(), Vec::new());
        self.files.read(shard, extent.offset, extent.length as usize, &mut bytes)?;
        String::from_utf8(bytes).map_err(|_| {
            // It was UTF-8 when it was indexed, and its time of change is still the same.
            let path = self.files.location(shard);
            DataError::Shard { path, reason: format!("the .{name} of row {row} is no UTF-8 any more") }
        })
    }
}

/// How shards of a kind are indexed.
pub(super) fn reader(spec: &DataSet) -> Box<dyn ShardReader> {
    match spec.kind {
        DataKind::Webdataset => Box::new(Tars),
        DataKind::Parquet => Box::new(Parquets { image_column: spec.image_column.clone() }),
        DataKind::List => Box::new(Lists { image_column: spec.image_column.clone() }),
    }
}

/// Where the images of a kind are.
pub(super) fn images(spec: &DataSet, found: &[Found]) -> Result<Images, DataError> {
    Ok(match spec.kind {
        DataKind::Webdataset => Images::Tars,
        DataKind::Parquet => Images::Parquets(ParquetImages::new(spec.image_column.clone())),
        DataKind::List => {
            let given = spec.images.as_ref().map(Location::try_from).transpose()?;
            let folder = |found: &Found| match found {
                Found::File(path) if path.is_dir() => Location::Local(path.clone()),
                found => found.location().folder(),
            };
            Images::Folders(found.iter().map(|found| given.clone().unwrap_or_else(|| folder(found))).collect())
        }
    })
}

/// Where each caption column comes from.
fn sources(name: &str, spec: &DataSet) -> Result<Vec<Column>, DataError> {
    let (mut own, mut table) = (0, 0);
    let mut columns = Vec::new();
    for column in &spec.captions.columns {
        let source = match (column.name.strip_prefix('.'), spec.kind) {
            (Some(field), DataKind::Webdataset) if !field.starts_with("json:") => {
                Source::Member(field.strip_suffix("[*]").unwrap_or(field).to_owned())
            }
            (Some(_), _) => {
                own += 1;
                Source::Own(own - 1)
            }
            (None, _) if spec.captions.table.is_none() => {
                return Err(DataError::NoTable { name: name.to_owned(), column: column.name.clone() });
            }
            (None, _) => {
                table += 1;
                Source::Table(table - 1)
            }
        };
        columns.push(Column { name: column.name.clone(), needed: column.weight > 0, source });
    }
    Ok(columns)
}

/// The field that a column of the samples' own means.
fn own_field(name: &str) -> &str {
    let name = name.strip_prefix('.').unwrap_or(name);
    name.strip_prefix("json:").unwrap_or(name)
}

/// Where the fields that a join reads in the metadata of tars are kept while these are indexed; `None` when no tar is an object, or
/// nothing is read in their metadata.
fn gathered(spec: &DataSet, columns: &[Column], found: &[Found], places: &Places) -> Option<Gathered> {
    if spec.kind != DataKind::Webdataset || !found.iter().any(|found| matches!(found, Found::Object(_))) {
        return None;
    }
    let own = columns.iter().filter(|column| matches!(column.source, Source::Own(_)));
    let join = spec.captions.table.as_ref().map(|table| table.join.as_str());
    let fields = join::own_fields(own.map(|column| own_field(&column.name)), &spec.only, join);
    if fields.is_empty() { None } else { Gathered::new(fields, places) }
}

/// What is joined to the samples; `None` when all captions are members.
fn joined(
    name: &str,
    spec: &DataSet,
    columns: &[Column],
    (indices, gathered): (&[ShardIndex], Option<&Gathered>),
    files: &Files,
    places: &Places,
) -> Result<Option<Joined>, DataError> {
    let wanted = |of: fn(&Source) -> bool, name: fn(&str) -> &str| -> Vec<Wanted> {
        let chosen = columns.iter().filter(|column| of(&column.source));
        chosen.map(|column| Wanted { name: name(&column.name).to_owned(), needed: column.needed }).collect()
    };
    let own = wanted(|source| matches!(source, Source::Own(_)), own_field);
    let table = match &spec.captions.table {
        None => None,
        Some(table) => {
            let storage = files.storage().clone();
            let files = glob::expand(&storage, &table.file)?;
            let stats = files.iter().map(Found::stat).collect::<Result<_, _>>()?;
            let columns = wanted(|source| matches!(source, Source::Table(_)), |name| name);
            let (key, join, unmatched) = (table.key.clone(), table.join.clone(), table.unmatched);
            Some(TablePlan { storage, files, stats, key, join, columns, unmatched })
        }
    };
    if own.is_empty() && table.is_none() && spec.only.is_empty() {
        return Ok(None);
    }
    let fields: Box<dyn OwnFields> = match spec.kind {
        DataKind::Webdataset => Box::new(TarMetadata { files, indices, gathered }),
        DataKind::Parquet | DataKind::List => Box::new(RowColumns { files }),
    };
    let plan = Plan { name, indices, own, only: &spec.only, table };
    join::open(&plan, fields.as_ref(), places).map(Some)
}
