//! Tables of texts, read row by row in one pass: parquet, CSV, JSON lines, and one JSON array of any length.
//!
//! What a file is its name's ending says. Of no file more than a batch of rows is in memory.

mod columns;
mod csv;
mod json;
mod parquet;
#[cfg(test)]
mod tests;

pub use self::{
    columns::{text_columns, text_fields},
    json::Field,
};

use super::{DataError, source::Stat};
use std::path::{Path, PathBuf};

/// What is done with a row: its wanted texts, `None` where there is none.
pub type EachRow<'a> = dyn FnMut(&[Option<&str>]) -> Result<(), DataError> + 'a;

/// Reads the wanted columns of all rows, in order.
///
/// In JSON a column is a path into the row: `caption`, `conversations[1].value`, or `caption[*]` for all texts of an array,
/// which come as one JSON array.
///
/// # Errors
/// When the file cannot be read or lacks a column, or with the first error that `each` returns.
pub fn read(path: &Path, columns: &[String], each: &mut EachRow<'_>) -> Result<(), DataError> {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    match ending.as_deref() {
        Some("parquet") => parquet::read(path, columns, each),
        Some("csv") => csv::read(path, b',', columns, each),
        Some("tsv") => csv::read(path, b'\t', columns, each),
        Some("jsonl" | "jsonlines" | "ndjson") => json::read_lines(path, columns, each),
        Some("json") => json::read_array(path, columns, each),
        _ => Err(failed(path)("its name ends in none of .parquet, .csv, .tsv, .jsonl, .jsonlines, .ndjson, .json")),
    }
}

/// A table's files as they are now: by this a join is known to be of them.
pub fn stats(paths: &[PathBuf]) -> Result<Vec<Stat>, DataError> {
    let stat = |path: &PathBuf| {
        let io = |source| DataError::Io { operation: "read", path: path.clone(), source };
        Ok(Stat::of(&std::fs::metadata(path).map_err(io)?))
    };
    paths.iter().map(stat).collect()
}

fn failed(path: &Path) -> impl Fn(&str) -> DataError {
    move |reason| DataError::Table { path: path.to_owned(), reason: reason.to_owned() }
}

fn missing(path: &Path, column: &str, columns: &[String]) -> DataError {
    DataError::MissingColumn { path: path.to_owned(), column: column.to_owned(), columns: columns.join(", ") }
}
