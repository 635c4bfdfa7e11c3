//! A table of captions, joined by key.

use super::DataError;
use arrow_array::{Array as _, RecordBatch, StringArray, cast::AsArray as _};
use common::recipe::CaptionTable;
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
};
use std::{collections::HashMap, fs::File, path::Path};

/// The wanted columns of a parquet file.
#[derive(Debug)]
pub struct Captions {
    rows: HashMap<String, u32>,
    /// Per wanted column, a caption a row; `None` is null.
    columns: Vec<Vec<Option<String>>>,
    /// Rows whose key came before.
    pub duplicate_rows: u64,
}

impl Captions {
    /// Reads the key and the wanted columns.
    ///
    /// # Errors
    /// When the file cannot be read, or a column is missing or holds no strings.
    pub fn read(table: &CaptionTable, wanted: &[&str]) -> Result<Self, DataError> {
        let path = &table.file;
        let file =
            File::open(path).map_err(|source| DataError::Io { operation: "open", path: path.clone(), source })?;
        let failed = |reason: String| DataError::Table { path: path.clone(), reason };
        // Without the schema of the writer's own, every string column comes as one type.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options)
            .map_err(|error| failed(error.to_string()))?;
        let names: Vec<String> = builder.schema().fields().iter().map(|field| field.name().clone()).collect();
        let mut roots = Vec::new();
        for column in std::iter::once(table.key.as_str()).chain(wanted.iter().copied()) {
            roots.push(names.iter().position(|name| name == column).ok_or_else(|| DataError::MissingColumn {
                path: path.clone(),
                column: column.to_owned(),
                columns: names.join(", "),
            })?);
        }
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        let reader = builder.with_projection(mask).build().map_err(|error| failed(error.to_string()))?;
        let mut read = Self { rows: HashMap::new(), columns: vec![Vec::new(); wanted.len()], duplicate_rows: 0 };
        for batch in reader {
            read.append(&batch.map_err(|error| failed(error.to_string()))?, &table.key, wanted, path)?;
        }
        Ok(read)
    }

    /// A key's row; `None` when the table has none.
    pub fn row(&self, key: &str) -> Option<u32> {
        self.rows.get(key).copied()
    }

    /// The caption of a row in one of the wanted columns, by its place among them.
    pub fn caption(&self, row: u32, column: usize) -> Option<&str> {
        self.columns[column][row as usize].as_deref()
    }

    fn append(&mut self, batch: &RecordBatch, key: &str, wanted: &[&str], path: &Path) -> Result<(), DataError> {
        let strings = |name: &str| -> Result<&StringArray, DataError> {
            let array = batch.column_by_name(name).expect("the projection holds the column");
            array.as_string_opt::<i32>().ok_or_else(|| DataError::Table {
                path: path.to_owned(),
                reason: format!("column `{name}` holds {}, not strings", array.data_type()),
            })
        };
        let keys = strings(key)?;
        let captions = wanted.iter().map(|name| strings(name)).collect::<Result<Vec<_>, _>>()?;
        for row in (0..batch.num_rows()).filter(|row| keys.is_valid(*row)) {
            if self.rows.contains_key(keys.value(row)) {
                self.duplicate_rows += 1;
                continue;
            }
            let place = u32::try_from(self.rows.len()).map_err(|_| DataError::Table {
                path: path.to_owned(),
                reason: "it has more than 4,294,967,295 rows; split it".to_owned(),
            })?;
            self.rows.insert(keys.value(row).to_owned(), place);
            for (column, captions) in self.columns.iter_mut().zip(&captions) {
                column.push(captions.is_valid(row).then(|| captions.value(row).to_owned()));
            }
        }
        Ok(())
    }
}
