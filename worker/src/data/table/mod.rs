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

use super::{DataError, blob::Blob};
use crate::storage::Location;

/// What is done with a row: its wanted texts, `None` where there is none.
pub type EachRow<'a> = dyn FnMut(&[Option<&str>]) -> Result<(), DataError> + 'a;

/// Reads the wanted columns of all rows, in order.
///
/// In JSON a column is a path into the row: `caption`, `conversations[1].value`, or `caption[*]` for all texts of an array,
/// which come as one JSON array.
///
/// # Errors
/// When the file cannot be read or lacks a column, or with the first error that `each` returns.
pub fn read(file: &Blob, columns: &[String], each: &mut EachRow<'_>) -> Result<(), DataError> {
    let location = file.location();
    let ending = location.name().rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    match ending.as_deref() {
        Some("parquet") => parquet::read(file, columns, each),
        Some("csv") => csv::read(file, b',', columns, each),
        Some("tsv") => csv::read(file, b'\t', columns, each),
        Some("jsonl" | "jsonlines" | "ndjson") => json::read_lines(file, columns, each),
        Some("json") => json::read_array(file, columns, each),
        _ => {
            Err(failed(&location)("its name ends in none of .parquet, .csv, .tsv, .jsonl, .jsonlines, .ndjson, .json"))
        }
    }
}

fn failed(path: &Location) -> impl Fn(&str) -> DataError {
    move |reason| DataError::Table { path: path.clone(), reason: reason.to_owned() }
}

fn missing(path: &Location, column: &str, columns: &[String]) -> DataError {
    DataError::MissingColumn { path: path.clone(), column: column.to_owned(), columns: columns.join(", ") }
}
