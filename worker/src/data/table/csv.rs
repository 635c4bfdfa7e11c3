//! CSV with a header row, quoted as RFC 4180 says: fields may hold commas, quotes and line ends.

use super::{DataError, EachRow, failed, missing};
use std::{fs::File, path::Path};

/// Bytes read at a time.
const BUFFER: usize = 1 << 20;

pub fn read(path: &Path, delimiter: u8, columns: &[String], each: &mut EachRow<'_>) -> Result<(), DataError> {
    let failed = failed(path);
    let file = File::open(path).map_err(|source| DataError::Io { operation: "open", path: path.to_owned(), source })?;
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).buffer_capacity(BUFFER).from_reader(file);
    let header = reader.byte_headers().map_err(|error| failed(&error.to_string()))?;
    let name = |field: &[u8]| String::from_utf8_lossy(field).trim_start_matches('\u{feff}').to_owned();
    let names: Vec<String> = header.iter().map(name).collect();
    let place =
        |column: &String| names.iter().position(|name| name == column).ok_or_else(|| missing(path, column, &names));
    let places = columns.iter().map(place).collect::<Result<Vec<_>, _>>()?;
    let mut record = csv::ByteRecord::new();
    // The reader's own error names the line.
    while reader.read_byte_record(&mut record).map_err(|error| failed(&error.to_string()))? {
        let text = |place: &usize| std::str::from_utf8(record.get(*place)?).ok();
        let texts: Vec<Option<&str>> = places.iter().map(text).collect();
        each(&texts)?;
    }
    Ok(())
}
