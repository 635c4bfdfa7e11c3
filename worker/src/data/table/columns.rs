//! Which columns of a table hold texts.

use super::{Blob, DataError, failed};
use crate::data::chunks::{Chunks, Failure};
use arrow_schema::DataType;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::Value;
use std::io::BufRead as _;

/// The columns of texts: of JSON the texts of the first row, and its arrays of texts as `name[*]`.
///
/// # Errors
/// When the file cannot be read.
pub fn text_columns(file: &Blob) -> Result<Vec<String>, DataError> {
    let location = file.location();
    let ending = location.name().rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    match ending.as_deref() {
        _ if file.folder().is_some() => Ok(vec!["caption".to_owned()]),
        Some("parquet") => of_parquet(file),
        Some("csv") => of_csv(file, b','),
        Some("tsv") => of_csv(file, b'\t'),
        Some("json") => of_array(file),
        _ => of_lines(file),
    }
}

fn said(file: &Blob) -> impl Fn(&dyn std::fmt::Display) -> DataError {
    let location = file.location();
    move |error| failed(&location)(&error.to_string())
}

fn of_parquet(file: &Blob) -> Result<Vec<String>, DataError> {
    let failure = Failure::default();
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let chunks = Chunks::new(file.clone(), &failure);
    let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(chunks, options).map_err(|error| {
        let said = said(file)(&error);
        failure.take().map_or(said, |source| file.failed("read", source))
    })?;
    let texts = builder.schema().fields().iter().filter(|field| *field.data_type() == DataType::Utf8);
    Ok(texts.map(|field| field.name().clone()).collect())
}

fn of_csv(file: &Blob, delimiter: u8) -> Result<Vec<String>, DataError> {
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(file.stream());
    let header = reader.byte_headers().map_err(|error| said(file)(&error))?;
    let name = |field: &[u8]| String::from_utf8_lossy(field).trim_start_matches('\u{feff}').to_owned();
    Ok(header.iter().map(name).collect())
}

fn of_array(file: &Blob) -> Result<Vec<String>, DataError> {
    let mut first = First(None);
    // What follows the first item is not read, of which serde complains.
    let read = serde_json::Deserializer::from_reader(file.stream()).deserialize_seq(&mut first);
    match (first.0, read) {
        (Some(row), _) => Ok(text_fields(&row)),
        (None, Ok(())) => Ok(Vec::new()),
        (None, Err(error)) => Err(said(file)(&error)),
    }
}

fn of_lines(file: &Blob) -> Result<Vec<String>, DataError> {
    for line in file.stream().lines() {
        let line = line.map_err(|source| file.failed("read", source))?;
        if !line.trim().is_empty() {
            return Ok(text_fields(&serde_json::from_str(&line).map_err(|error| said(file)(&error))?));
        }
    }
    Ok(Vec::new())
}

/// The texts of a JSON object, its arrays of texts as `name[*]`, and the answer of a conversation.
pub fn text_fields(row: &Value) -> Vec<String> {
    let all_text = |items: &Vec<Value>| !items.is_empty() && items.iter().all(Value::is_string);
    let field = |(name, value): (&String, &Value)| match value {
        Value::String(_) => Some(name.clone()),
        Value::Array(items) if all_text(items) => Some(format!("{name}[*]")),
        Value::Array(items) => {
            let answer = items.iter().position(|item| item["from"] == "gpt" && item["value"].is_string())?;
            Some(format!("{name}[{answer}].value"))
        }
        _ => None,
    };
    row.as_object().into_iter().flatten().filter_map(field).collect()
}

/// Takes the first item of an array.
struct First(Option<Value>);

impl<'de> Visitor<'de> for &mut First {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("one array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        self.0 = items.next_element()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{blob::Found, tests::storage};
    use std::path::Path;

    fn of(path: &Path) -> Result<Vec<String>, DataError> {
        text_columns(&Blob::open(&storage(), &Found::File(path.to_owned())).unwrap())
    }

    #[test]
    fn columns_of_texts_are_found_in_every_kind_of_table() {
        let folder = tempfile::tempdir().unwrap();
        let columns = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            of(&path).unwrap()
        };
        let row = r#"{"caption": ["a", "b"], "image": "x.jpg", "width": 3, "boxes": [1], "none": []}"#;
        assert_eq!(columns("a.json", &format!("[{row}, {{\"more\": 1}}]")), ["caption[*]", "image"]);
        assert_eq!(columns("a.jsonl", &format!("\n{row}\n{row}\n")), ["caption[*]", "image"]);
        let talk = r#"{"id": "1", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]}"#;
        assert_eq!(columns("talk.json", &format!("[{talk}]")), ["conversations[1].value", "id"]);
        assert_eq!(columns("a.csv", "\u{feff}image,caption\nx,y\n"), ["image", "caption"]);
        assert_eq!(columns("a.tsv", "image\tlong caption\n"), ["image", "long caption"]);
        assert_eq!(columns("b.json", "[]"), Vec::<String>::new());
        assert_eq!(of(folder.path()).unwrap(), ["caption"]);
        let emoji = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/emoji/emoji-dense-val.parquet");
        assert!(of(&emoji).unwrap().contains(&"long_caption".to_owned()));
        std::fs::write(folder.path().join("c.json"), "{").unwrap();
        assert!(of(&folder.path().join("c.json")).is_err());
    }
}
