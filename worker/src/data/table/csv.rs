//! CSV with a header row, quoted as RFC 4180 says: fields may hold commas, quotes and line ends.

use super::{Blob, DataError, EachRow, failed, missing};

pub fn read(file: &Blob, delimiter: u8, columns: &[String], each: &mut EachRow<'_>) -> Result<(), DataError> {
    let path = &file.location();
    // What is no failure of reading is one of the table's form, and the reader's own error names the line.
    let failed = |error: csv::Error| {
        let text = error.to_string();
        match error.into_kind() {
            csv::ErrorKind::Io(source) => file.failed("read", source),
            _ => failed(path)(&text),
        }
    };
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(file.stream());
    let header = reader.byte_headers().map_err(failed)?;
    let name = |field: &[u8]| String::from_utf8_lossy(field).trim_start_matches('\u{feff}').to_owned();
    let names: Vec<String> = header.iter().map(name).collect();
    let place =
        |column: &String| names.iter().position(|name| name == column).ok_or_else(|| missing(path, column, &names));
    let places = columns.iter().map(place).collect::<Result<Vec<_>, _>>()?;
    let mut record = csv::ByteRecord::new();
    while reader.read_byte_record(&mut record).map_err(failed)? {
        let text = |place: &usize| std::str::from_utf8(record.get(*place)?).ok();
        let texts: Vec<Option<&str>> = places.iter().map(text).collect();
        each(&texts)?;
    }
    Ok(())
}
