//! Images in rows of parquet files: `jpg: binary` as img2dataset writes them, or `image: struct{bytes, path}` as Hugging
//! Face does.

use crate::{
    data::{
        DataError,
        blob::Blob,
        chunks::{Chunks, Failure, bytes_of},
        files::Files,
        index::{Flaw, Place, Rows, ShardReader},
    },
    storage::Location,
};
use arrow_array::{Array, BinaryArray, RecordBatch, StringArray, cast::AsArray as _};
use arrow_schema::{DataType, Schema};
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{
            ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector,
        },
    },
    file::metadata::PageIndexPolicy,
    schema::types::SchemaDescriptor,
};
use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

/// The columns that are tried when the recipe names none.
const USUAL: [&str; 6] = ["image", "jpg", "jpeg", "png", "webp", "img"];
/// The columns that may hold a sample's key; without one the key is the row's number.
const KEYS: [&str; 3] = ["key", "__key__", "id"];
/// Rows decoded at a time while indexing.
const BATCH: usize = 64;
/// How much of an image's end goes into the fingerprint.
const TAIL: usize = 64;
/// Column chunks of which the metadata are held, some hundred bytes each: files of thousands of small row groups are many
/// megabytes of it.
const HELD_CHUNKS: usize = 1 << 19;

fn options() -> ArrowReaderOptions {
    // Without the schema of the writer's own, every column of bytes comes as one type.
    ArrowReaderOptions::new().with_skip_arrow_metadata(true).with_page_index_policy(PageIndexPolicy::Optional)
}

fn failed(path: &Location, error: &dyn std::fmt::Display) -> DataError {
    DataError::Shard { path: path.clone(), reason: error.to_string() }
}

/// The image column of a schema: its place, and the leaf with the bytes.
fn image_column(schema: &Schema, wanted: Option<&str>, path: &Location) -> Result<usize, DataError> {
    let tried: Vec<&str> = wanted.map_or(USUAL.to_vec(), |column| vec![column]);
    let found = tried.iter().find_map(|name| schema.index_of(name).ok());
    let names = || schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ");
    let place = found.ok_or_else(|| DataError::MissingColumn {
        path: path.clone(),
        column: tried.join("` or `"),
        columns: names(),
    })?;
    match schema.field(place).data_type() {
        DataType::Binary => Ok(place),
        DataType::Struct(fields) if fields.find("bytes").is_some_and(|(_, f)| *f.data_type() == DataType::Binary) => {
            Ok(place)
        }
        other => {
            let name = schema.field(place).name();
            Err(failed(path, &format!("column `{name}` holds {other}, not an image's bytes")))
        }
    }
}

/// Only the bytes of the image, and not its path.
fn projection(descriptor: &SchemaDescriptor, image: usize, key: Option<usize>) -> ProjectionMask {
    let leaves = (0..descriptor.num_columns()).filter(|leaf| {
        let root = descriptor.get_column_root_idx(*leaf);
        let name = descriptor.column(*leaf).name().to_owned();
        let is_struct = descriptor.column(*leaf).path().parts().len() > 1;
        Some(root) == key || (root == image && (!is_struct || name == "bytes"))
    });
    ProjectionMask::leaves(descriptor, leaves.collect::<Vec<_>>())
}

/// The images of a batch.
fn images(batch: &RecordBatch, column: &str) -> Option<BinaryArray> {
    let column = batch.column_by_name(column)?;
    match column.data_type() {
        DataType::Binary => Some(column.as_binary::<i32>().clone()),
        DataType::Struct(_) => Some(column.as_struct().column_by_name("bytes")?.as_binary_opt::<i32>()?.clone()),
        _ => None,
    }
}

/// Reads parquet files of images. A sample's key is the text of its `key`, `__key__` or `id`, else its row's number.
pub struct Parquets {
    /// The column of the images; absent means the first of the usual ones.
    pub image_column: Option<String>,
}

impl ShardReader for Parquets {
    fn kind(&self) -> String {
        format!("parquet-1 {}", self.image_column.as_deref().unwrap_or_default())
    }

    fn read(&self, shard: &Blob) -> Result<Rows, DataError> {
        let failure = Failure::default();
        let read = self.rows(shard, &failure);
        read.map_err(|error| failure.take().map_or(error, |source| shard.failed("read", source)))
    }
}

impl Parquets {
    fn rows(&self, shard: &Blob, failure: &Failure) -> Result<Rows, DataError> {
        let path = &shard.location();
        let source = Chunks::new(shard.clone(), failure);
        let metadata = ArrowReaderMetadata::load(&source, options()).map_err(|error| failed(path, &error))?;
        let schema = metadata.schema().clone();
        let image = image_column(&schema, self.image_column.as_deref(), path)?;
        let is_text = |place: &usize| *schema.field(*place).data_type() == DataType::Utf8;
        let key = KEYS.iter().find_map(|name| schema.index_of(name).ok().filter(is_text));
        let mask = projection(metadata.parquet_schema(), image, key);
        let source = source.in_order(&metadata, &mask);
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(source, metadata);
        let reader = builder.with_projection(mask).with_batch_size(BATCH).build();
        let reader = reader.map_err(|error| failed(path, &error))?;
        let mut rows = Rows::default();
        for batch in reader {
            let batch = batch.map_err(|error| failed(path, &error))?;
            let images = images(&batch, schema.field(image).name())
                .ok_or_else(|| failed(path, &"the image column has changed its type"))?;
            let keys = key.and_then(|key| batch.column_by_name(schema.field(key).name())?.as_string_opt::<i32>());
            (0..batch.num_rows()).for_each(|row| add(&mut rows, &images, keys, row));
        }
        Ok(rows)
    }
}

fn add(rows: &mut Rows, images: &BinaryArray, keys: Option<&StringArray>, row: usize) {
    let number = u64::from(rows.count());
    let key =
        keys.filter(|keys| keys.is_valid(row)).map_or_else(|| number.to_string(), |keys| keys.value(row).to_owned());
    let place = rows.push(&key);
    if images.is_valid(row) {
        let bytes = images.value(row);
        let found = Place::of_row(number, bytes.len() as u64);
        let flaw = if bytes.is_empty() { Some(Flaw::Empty) } else { found.is_none().then_some(Flaw::Undecodable) };
        rows.put(place, "image", found, &bytes[bytes.len().saturating_sub(TAIL)..], flaw);
    }
}

/// What of a file is held: its footer, where its row groups begin, and the projection to images.
struct Opened {
    path: Location,
    metadata: ArrowReaderMetadata,
    /// The first row of each row group.
    groups: Vec<u64>,
    mask: ProjectionMask,
    /// The leaf of the images' bytes.
    leaf: usize,
    column: String,
}

impl Opened {
    fn bytes_of(&self, row: u64) -> Range<u64> {
        let group = self.groups.partition_point(|first| *first <= row).saturating_sub(1);
        let metadata = self.metadata.metadata();
        let chunk = metadata.row_groups().get(group).and_then(|group| group.columns().get(self.leaf));
        let Some(chunk) = chunk.and_then(bytes_of) else { return 0..0 };
        let before = (row - self.groups[group]) as i64;
        let pages = metadata.offset_index().and_then(|index| Some(index.get(group)?.get(self.leaf)?.page_locations()));
        let after = pages.map(|pages| (pages, pages.partition_point(|page| page.first_row_index <= before)));
        match after.and_then(|(pages, after)| pages.get(after.checked_sub(1)?)) {
            Some(page) => page.offset as u64..page.offset as u64 + page.compressed_page_size as u64,
            None => chunk,
        }
    }
}

/// The rows of parquet files by number.
pub struct ParquetImages {
    image_column: Option<String>,
    opened: Mutex<HashMap<u32, Arc<Opened>>>,
}

impl std::fmt::Debug for ParquetImages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParquetImages").field("image_column", &self.image_column).finish_non_exhaustive()
    }
}

impl ParquetImages {
    /// Nothing is opened yet.
    pub fn new(image_column: Option<String>) -> Self {
        Self { image_column, opened: Mutex::default() }
    }

    /// Reads the image of a row. Of the file only the pages that hold the row are decoded: those before it in its row group
    /// are passed over by their headers, or by the page index where the writer made one. Rows decoded along with it are not
    /// kept: in the order of training nobody asks for them soon.
    pub fn read(&self, files: &Files, shard: u32, row: u64, bytes: &mut Vec<u8>) -> Result<(), DataError> {
        let (blob, failure) = (files.blob(shard)?, Failure::default());
        let read = self.row(&blob, &failure, shard, row, bytes);
        read.map_err(|error| failure.take().map_or(error, |source| files.failed(shard, &blob, source)))
    }

    /// The bytes of a shard that are read for a row: those of its page where the file has an index of pages, else all of its row group's
    /// images.
    pub fn bytes_of(&self, files: &Files, shard: u32, row: u64) -> Result<Range<u64>, DataError> {
        let (blob, failure) = (files.blob(shard)?, Failure::default());
        let opened = self.opened(&blob, &failure, shard);
        let opened =
            opened.map_err(|error| failure.take().map_or(error, |source| files.failed(shard, &blob, source)))?;
        Ok(opened.bytes_of(row))
    }

    fn row(&self, blob: &Blob, failure: &Failure, shard: u32, row: u64, bytes: &mut Vec<u8>) -> Result<(), DataError> {
        let opened = self.opened(blob, failure, shard)?;
        let path = &opened.path;
        let group = opened.groups.partition_point(|first| *first <= row).saturating_sub(1);
        let before = (row - opened.groups.get(group).copied().unwrap_or(0)) as usize;
        let selection = RowSelection::from(vec![RowSelector::skip(before), RowSelector::select(1)]);
        let chunks = Chunks::new(blob.clone(), failure);
        let mut reader = ParquetRecordBatchReaderBuilder::new_with_metadata(chunks, opened.metadata.clone())
            .with_projection(opened.mask.clone())
            .with_row_groups(vec![group])
            .with_row_selection(selection)
            .with_batch_size(1)
            .build()
            .map_err(|error| failed(path, &error))?;
        let batch = reader.next().transpose().map_err(|error| failed(path, &error))?;
        let image = batch
            .as_ref()
            .and_then(|batch| images(batch, &opened.column))
            .filter(|images| images.len() == 1 && images.is_valid(0));
        let image = image.ok_or_else(|| failed(path, &format!("row {row} has no image any more")))?;
        bytes.clear();
        bytes.extend_from_slice(image.value(0));
        Ok(())
    }

    fn opened(&self, blob: &Blob, failure: &Failure, shard: u32) -> Result<Arc<Opened>, DataError> {
        let lock = || self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = lock().get(&shard) {
            return Ok(opened.clone());
        }
        let path = blob.location();
        let metadata = ArrowReaderMetadata::load(&Chunks::new(blob.clone(), failure), options())
            .map_err(|error| failed(&path, &error))?;
        let image = image_column(metadata.schema(), self.image_column.as_deref(), &path)?;
        let mut first = 0;
        let start = |rows: i64| {
            first += rows.max(0) as u64;
            first - rows.max(0) as u64
        };
        let groups = metadata.metadata().row_groups().iter().map(|group| group.num_rows()).map(start).collect();
        let mask = projection(metadata.parquet_schema(), image, None);
        let column = metadata.schema().field(image).name().clone();
        let leaves = metadata.parquet_schema().num_columns();
        let leaf = (0..leaves).find(|leaf| mask.leaf_included(*leaf)).unwrap_or_default();
        let opened = Arc::new(Opened { path, metadata, groups, mask, leaf, column });
        let chunks = |opened: &Opened| opened.groups.len() * opened.metadata.parquet_schema().num_columns();
        let mut held = lock();
        if held.values().map(|opened| chunks(opened)).sum::<usize>() + chunks(&opened) > HELD_CHUNKS {
            held.clear();
        }
        held.insert(shard, opened.clone());
        Ok(opened)
    }
}
