//! Parquet files by position: several threads share them, and the reader's own way would share one cursor.

use super::{
    blob::{Blob, Stream},
    source::ReadAt as _,
};
use bytes::Bytes;
use parquet::{
    arrow::{ProjectionMask, arrow_reader::ArrowReaderMetadata},
    errors::ParquetError,
    file::{
        metadata::ColumnChunkMetaData,
        reader::{ChunkReader, Length},
    },
};
use std::{
    io::{self, BufReader},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

/// Bytes that are read at a time where only a page's header is wanted.
const HEADER: usize = 1024;

/// A file or object as the parquet reader wants it.
pub struct Chunks {
    blob: Blob,
    failure: Failure,
    planned: Vec<Range<u64>>,
}

/// Why bytes could not be read, which the parquet reader would turn into a text.
#[derive(Debug, Clone, Default)]
pub struct Failure(Arc<Mutex<Option<io::Error>>>);

impl Failure {
    /// The error, if reading failed; it is given out once.
    pub fn take(&self) -> Option<io::Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn keep(&self, error: io::Error) -> ParquetError {
        let text = error.to_string();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        ParquetError::General(text)
    }
}

impl Chunks {
    /// Of an open file or object; `failure` is told why bytes could not be read.
    pub fn new(blob: Blob, failure: &Failure) -> Self {
        Self { blob, failure: failure.clone(), planned: Vec::new() }
    }

    /// To be read from its first row to its last, these columns of it: blocks of an object are fetched ahead.
    pub fn in_order(mut self, metadata: &ArrowReaderMetadata, columns: &ProjectionMask) -> Self {
        let groups = metadata.metadata().row_groups().iter();
        let chunks = groups.flat_map(|group| group.columns().iter().enumerate());
        let wanted = chunks.filter(|(leaf, _)| columns.leaf_included(*leaf));
        self.planned = wanted.filter_map(|(_, chunk)| bytes_of(chunk)).collect();
        self.planned.sort_by_key(|range| range.start);
        self
    }
}

/// The bytes of a column of a row group; `None` when a damaged footer says what cannot be.
pub fn bytes_of(chunk: &ColumnChunkMetaData) -> Option<Range<u64>> {
    let start = chunk.dictionary_page_offset().filter(|at| *at > 0).unwrap_or_else(|| chunk.data_page_offset());
    let (start, length) = (u64::try_from(start).ok()?, u64::try_from(chunk.compressed_size()).ok()?);
    Some(start..start.checked_add(length)?)
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.blob.length().unwrap_or(0)
    }
}

impl ChunkReader for Chunks {
    type T = BufReader<Stream>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(BufReader::with_capacity(HEADER, self.blob.read_from(start)))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        // A damaged footer may ask for anything.
        if start.checked_add(length as u64).is_none_or(|end| end > self.len()) {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} are beyond the end of the file")));
        }
        self.blob.read_ahead(start, &self.planned);
        let mut bytes = vec![0; length];
        self.blob.read_at(&mut bytes, start).map_err(|error| self.failure.keep(error))?;
        Ok(bytes.into())
    }
}
