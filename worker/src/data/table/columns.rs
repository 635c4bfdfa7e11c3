//! Which columns of a table hold texts.

use super::{DataError, failed};
use arrow_schema::DataType;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::Value;
use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
};

/// The columns of texts: of JSON the texts of the first row, and its arrays of texts as `name[*]`.
///
/// # Errors
/// When the file cannot be read, or its name's ending is none of a table.
pub fn text_columns(path: &Path) -> Result<Vec<String>, DataError> {
    if path.is_dir() {
        return Ok(vec!["caption".to_owned()]);
    }
    let file = File::open(path).map_err(|source| DataError::Io { operation: "open", path: path.to_owned(), source })?;
    let said = |error: &dyn std::fmt::Display| failed(path)(&error.to_string());
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    match ending.as_deref() {
        Some("parquet") => {
            let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
            let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options);
            let schema = builder.map_err(|error| said(&error))?.schema().clone();
            let texts = schema.fields().iter().filter(|field| *field.data_type() == DataType::Utf8);
            Ok(texts.map(|field| field.name().clone()).collect())
        }
        Some(kind @ ("csv" | "tsv")) => {
            let delimiter = if kind == "csv" { b',' } else { b'\t' };
            let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(file);
            let header = reader.byte_headers().map_err(|error| said(&error))?;
            let name = |field: &[u8]| String::from_utf8_lossy(field).trim_start_matches('\u{feff}').to_owned();
            Ok(header.iter().map(name).collect())
        }
        Some("json") => {
            let mut first = First(None);
            // What follows the first item is not read, of which serde complains.
            let read = serde_json::Deserializer::from_reader(BufReader::new(file)).deserialize_seq(&mut first);
            match (first.0, read) {
                (Some(row), _) => Ok(text_fields(&row)),
                (None, Ok(())) => Ok(Vec::new()),
                (None, Err(error)) => Err(said(&error)),
            }
        }
        _ => {
            let lines = BufReader::new(file).lines();
            let full = |line: &Result<String, _>| line.as_ref().is_ok_and(|line| !line.trim().is_empty());
            let Some(line) = lines.take_while(Result::is_ok).find(full) else { return Ok(Vec::new()) };
            let row = line.map_err(|error| said(&error))?;
            Ok(text_fields(&serde_json::from_str(&row).map_err(|error| said(&error))?))
        }
    }
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

    #[test]
    fn columns_of_texts_are_found_in_every_kind_of_table() {
        let folder = tempfile::tempdir().unwrap();
        let columns = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            text_columns(&path).unwrap()
        };
        let row = r#"{"caption": ["a", "b"], "image": "x.jpg", "width": 3, "boxes": [1], "none": []}"#;
        assert_eq!(columns("a.json", &format!("[{row}, {{\"more\": 1}}]")), ["caption[*]", "image"]);
        assert_eq!(columns("a.jsonl", &format!("\n{row}\n{row}\n")), ["caption[*]", "image"]);
        let talk = r#"{"id": "1", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]}"#;
        assert_eq!(columns("talk.json", &format!("[{talk}]")), ["conversations[1].value", "id"]);
        assert_eq!(columns("a.csv", "\u{feff}image,caption\nx,y\n"), ["image", "caption"]);
        assert_eq!(columns("a.tsv", "image\tlong caption\n"), ["image", "long caption"]);
        assert_eq!(columns("b.json", "[]"), Vec::<String>::new());
        assert_eq!(text_columns(folder.path()).unwrap(), ["caption"]);
        let emoji = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/emoji/emoji-dense-val.parquet");
        assert!(text_columns(&emoji).unwrap().contains(&"long_caption".to_owned()));
        std::fs::write(folder.path().join("c.json"), "{").unwrap();
        assert!(text_columns(&folder.path().join("c.json")).is_err());
    }
}
