//! Fields of tars' metadata, kept when the tars are indexed: a tar in object storage is read once and not a second time for the
//! join. They lie in a file without a name, which is gone when the data set is open.

use super::own::texts_of;
use crate::{
    data::{
        DataError,
        blob::Blob,
        index::{Places, Rows, ShardReader, Tars},
        scan,
        table::Field,
    },
    storage::Location,
};
use serde_json::Value;
use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// A text of each field, for each row.
type Texts = Vec<Vec<Option<String>>>;

/// What was gathered of which tar.
pub struct Gathered {
    fields: Vec<String>,
    file: File,
    end: AtomicU64,
    places: Mutex<HashMap<Location, (u64, usize)>>,
}

impl Gathered {
    /// Of these fields. Absent when no file can be written: then tars are read a second time.
    pub fn new(fields: Vec<String>, places: &Places) -> Option<Self> {
        let file = match places.folder() {
            Some(folder) => std::fs::create_dir_all(folder).and_then(|()| tempfile::tempfile_in(folder)),
            None => tempfile::tempfile(),
        };
        let file =
            file.inspect_err(|error| tracing::info!(%error, "fields of metadata are not kept while tars are indexed"));
        let (end, places) = (AtomicU64::new(0), Mutex::default());
        Some(Self { fields, file: file.ok()?, end, places })
    }

    /// What was gathered of a tar; absent when it was not read now, or other fields are wanted.
    pub fn of(&self, tar: &Location, fields: &[String]) -> Option<Texts> {
        let (at, length) = *self.places.lock().unwrap_or_else(PoisonError::into_inner).get(tar)?;
        let mut bytes = vec![0; length];
        let read = self.file.read_exact_at(&mut bytes, at).map_err(io::Error::other);
        let texts = read.and_then(|()| serde_json::from_slice(&bytes).map_err(io::Error::other));
        let said = |error: &io::Error| tracing::info!(%tar, %error, "the tar's metadata are read again");
        texts.inspect_err(said).ok().filter(|_| self.fields == fields)
    }

    fn keep(&self, tar: Location, texts: &Texts) -> io::Result<()> {
        let bytes = serde_json::to_vec(texts)?;
        let at = self.end.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.file.write_all_at(&bytes, at)?;
        self.places.lock().unwrap_or_else(PoisonError::into_inner).insert(tar, (at, bytes.len()));
        Ok(())
    }
}

/// Reads tars as [`Tars`] does, and gathers on the way what it finds in those that lie in object storage.
pub struct GatheringTars<'a>(pub &'a Gathered);

impl ShardReader for GatheringTars<'_> {
    fn kind(&self) -> String {
        Tars.kind()
    }

    fn read(&self, shard: &Blob) -> Result<Rows, DataError> {
        let location = shard.location();
        if matches!(location, Location::Local(_)) {
            return Tars.read(shard);
        }
        let fields: Vec<Field> = self.0.fields.iter().map(|field| Field::new(field)).collect();
        let none = texts_of(&fields, &Value::Null);
        let mut texts = Texts::new();
        let rows = scan::scan_with(shard, &location, &mut |row, json| {
            let row = row as usize;
            if texts.len() <= row {
                texts.resize(row + 1, none.clone());
            }
            texts[row] = texts_of(&fields, &serde_json::from_slice(json).unwrap_or(Value::Null));
        })?;
        texts.resize(rows.count() as usize, none);
        if let Err(error) = self.0.keep(location, &texts) {
            tracing::info!(%error, "fields of metadata could not be kept: the tar is read a second time");
        }
        Ok(rows)
    }
}
