//! Texts without images, such as Wikitext: the rows of one column of some tables, by number.
//!
//! Nothing is left out or changed: Wikitext's empty rows and its ` = Heading = ` lines are rows like others, with their
//! line ends. So the reference reads it: it joins rows before it cuts them into blocks, and empty ones add nothing but
//! what the tokenizer puts around a text. Null is an empty row.

use super::{
    DataError,
    blob::{Blob, Found},
    container::{Container, Writer},
    glob,
    index::{Draft, Places, Store},
    table,
};
use crate::storage::Storage;
use common::recipe::DataPath;
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

/// What the footer says.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Footer {
    /// The hash of the files and the column.
    identity: String,
    /// How many rows there are.
    rows: u64,
    /// How many bytes of texts the stream begins with; the texts' ends follow.
    texts: u64,
    /// BLAKE3 in hex over all texts.
    fingerprint: String,
}

/// The rows of a column of texts. They are copied once into a file of which any row can be read: parquet has no such.
pub struct Documents {
    container: Container<Store>,
    footer: Footer,
    path: PathBuf,
}

impl std::fmt::Debug for Documents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Documents").field("footer", &self.footer).finish_non_exhaustive()
    }
}

impl Documents {
    /// Opens the rows of `column` in all files that match the patterns, in order.
    ///
    /// # Errors
    /// When a file is missing, is no table or lacks the column, or when the copy cannot be kept.
    pub fn open(
        storage: &Arc<Storage>,
        patterns: &[DataPath],
        column: &str,
        places: &Places,
    ) -> Result<Self, DataError> {
        let files = glob::expand_all(storage, patterns)?;
        let names: Vec<String> = files.iter().map(|file| file.location().to_string()).collect();
        let stats = files.iter().map(Found::stat).collect::<Result<Vec<_>, _>>()?;
        let identity =
            blake3::hash(format!("documents-1 {column:?} {names:?} {stats:?}").as_bytes()).to_hex().to_string();
        let folder = places.folder().map_or_else(std::env::temp_dir, Path::to_owned);
        let path = folder.join(format!("documents-{}.l2c", &identity[..32]));
        if path.exists() {
            match Self::read(&path) {
                Ok(documents) if documents.footer.identity == identity => return Ok(documents),
                Ok(_) => {}
                Err(error) => tracing::info!(file = %path.display(), %error, "the copy of the texts is made anew"),
            }
        }
        let keep = |source| DataError::Keep { path: path.clone().into(), source };
        let draft = Draft::new(&path).map_err(keep)?;
        let file = draft.file().try_clone().map_err(keep)?;
        copy(&Sources { storage, files: &files, column }, identity, BufWriter::with_capacity(1 << 20, file), &path)?;
        draft.publish().map_err(keep)?;
        Self::read(&path)
    }

    fn read(path: &Path) -> Result<Self, DataError> {
        let damaged = |reason: String| DataError::DamagedIndex { path: path.to_owned().into(), reason };
        let io = |source| DataError::Io { operation: "open", path: path.to_owned().into(), source };
        let store = Store::File(path.to_owned(), OnceLock::from(File::open(path).map_err(io)?));
        let (container, footer) = Container::open::<Footer>(store).map_err(|error| damaged(error.to_string()))?;
        let length = footer.rows.checked_mul(8).and_then(|ends| ends.checked_add(footer.texts));
        if length != Some(container.length()) {
            return Err(damaged("its parts disagree".to_owned()));
        }
        Ok(Self { container, footer, path: path.to_owned() })
    }

    /// How many rows there are, empty ones included.
    pub fn len(&self) -> u64 {
        self.footer.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.footer.rows == 0
    }

    /// BLAKE3 in hex over all texts.
    pub fn fingerprint(&self) -> &str {
        &self.footer.fingerprint
    }

    /// A row's text.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn text(&self, row: u64) -> Result<String, DataError> {
        assert!(row < self.footer.rows, "row {row} of {}", self.footer.rows);
        let mut bytes = Vec::new();
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let (start, end) = if row == 0 {
            self.bytes(self.footer.texts, 8, &mut bytes)?;
            (0, number(&bytes))
        } else {
            self.bytes(self.footer.texts + (row - 1) * 8, 16, &mut bytes)?;
            (number(&bytes[..8]), number(&bytes[8..]))
        };
        let length = end.checked_sub(start).ok_or_else(|| self.damaged("its parts disagree".to_owned()))?;
        self.bytes(start, length, &mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.damaged("a text is no UTF-8".to_owned()))
    }

    fn bytes(&self, at: u64, length: u64, bytes: &mut Vec<u8>) -> Result<(), DataError> {
        self.container.read(at, length, bytes).map_err(|error| self.damaged(error.to_string()))
    }

    fn damaged(&self, reason: String) -> DataError {
        DataError::DamagedIndex { path: self.path.clone().into(), reason }
    }
}

/// The texts that are copied.
struct Sources<'a> {
    storage: &'a Arc<Storage>,
    files: &'a [Found],
    column: &'a str,
}

fn copy(from: &Sources<'_>, identity: String, sink: BufWriter<File>, path: &Path) -> Result<(), DataError> {
    let keep = |source| DataError::Keep { path: path.to_owned().into(), source };
    let mut writer = Writer::new(sink).map_err(keep)?;
    let (mut ends, mut hasher) = (Vec::new(), blake3::Hasher::new());
    for file in from.files {
        let opened = Blob::open(from.storage, file);
        let file = opened.map_err(|source| DataError::io("open", &file.location(), source))?;
        table::read(&file, &[from.column.to_owned()], &mut |texts| {
            let text = texts[0].unwrap_or_default();
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
            writer.append(text.as_bytes()).map_err(keep)?;
            ends.push(writer.position());
            Ok(())
        })?;
    }
    let texts = writer.position();
    ends.iter().try_for_each(|end| writer.append(&end.to_le_bytes())).map_err(keep)?;
    let fingerprint = hasher.finalize().to_hex().to_string();
    let footer = Footer { identity, rows: ends.len() as u64, texts, fingerprint };
    writer.finish(&footer).and_then(|mut sink| sink.flush()).map_err(keep)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::storage;
    use arrow_array::{ArrayRef, RecordBatch, StringArray};
    use common::recipe::IndexPlace;

    #[test]
    fn wikitext_rows_are_kept_as_they_are_headings_and_empty_ones_too() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, rows: &[Option<&str>]| {
            let texts: StringArray = rows.iter().copied().collect();
            let batch = RecordBatch::try_from_iter([("text", Arc::new(texts) as ArrayRef)]).unwrap();
            let file = File::create(folder.path().join(name)).unwrap();
            let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
            writer.write(&batch).unwrap();
            writer.close().unwrap();
        };
        write("train-00000-of-00002.parquet", &[Some(""), Some(" = Valkyria = \n"), Some(""), Some(" Senjō no \n")]);
        write("train-00001-of-00002.parquet", &[None, Some("last")]);
        let places = Places::new(&IndexPlace::Folder(folder.path().join("index")));
        let patterns = [folder.path().join("train-*.parquet").into()];
        for _ in 0..2 {
            let documents = Documents::open(&storage(), &patterns, "text", &places).unwrap();
            let texts: Vec<String> = (0..documents.len()).map(|row| documents.text(row).unwrap()).collect();
            assert_eq!(texts, ["", " = Valkyria = \n", "", " Senjō no \n", "", "last"]);
        }
        assert_eq!(std::fs::read_dir(folder.path().join("index")).unwrap().count(), 1);
        let error = Documents::open(&storage(), &patterns, "body", &places).unwrap_err().to_string();
        assert!(error.contains("no column `body`; it has: text"), "{error}");
    }
}
