//! JSON lines, and one JSON array, whose items are read one after the other: a file of gigabytes costs one item's memory.

use super::{Blob, DataError, EachRow, Location, failed, missing};
use serde::de::{Deserializer as _, Error as _, SeqAccess, Visitor};
use serde_json::Value;
use std::io::BufRead as _;

/// A path into a JSON value: `caption`, `conversations[1].value`, `caption[*]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// As it was written; a key of this very name goes before the path.
    name: String,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Item(usize),
    /// All texts of an array, as a JSON array of strings.
    All,
}

impl Field {
    /// Reads a path; what is no path is the name of a key.
    pub fn new(name: &str) -> Self {
        let steps = Self::steps(name).unwrap_or_else(|| vec![Step::Key(name.to_owned())]);
        Self { name: name.to_owned(), steps }
    }

    fn steps(name: &str) -> Option<Vec<Step>> {
        let mut steps = Vec::new();
        for part in name.split('.') {
            let (key, mut rest) = part.find('[').map_or((part, ""), |at| part.split_at(at));
            if key.is_empty() {
                return None;
            }
            steps.push(Step::Key(key.to_owned()));
            while !rest.is_empty() {
                let (inside, after) = rest.strip_prefix('[')?.split_once(']')?;
                steps.push(if inside == "*" { Step::All } else { Step::Item(inside.parse().ok()?) });
                rest = after;
            }
        }
        Some(steps)
    }

    /// The text at the path; `None` for null and for what is not there. Numbers and truths are written as JSON writes them.
    pub fn text(&self, row: &Value) -> Option<String> {
        if let Some(value) = row.get(&self.name) {
            return plain(value);
        }
        let mut value = row;
        for step in &self.steps {
            value = match step {
                Step::Key(key) => value.get(key)?,
                Step::Item(place) => value.get(place)?,
                Step::All => {
                    let texts: Vec<&str> = value.as_array()?.iter().filter_map(Value::as_str).collect();
                    return serde_json::to_string(&texts).ok();
                }
            };
        }
        plain(value)
    }
}

fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Hands on rows, and remembers which columns were ever there.
struct Rows<'a, 'b> {
    fields: Vec<Field>,
    found: Vec<bool>,
    names: Vec<String>,
    each: &'a mut EachRow<'b>,
}

impl<'a, 'b> Rows<'a, 'b> {
    fn new(columns: &[String], each: &'a mut EachRow<'b>) -> Self {
        let fields = columns.iter().map(|column| Field::new(column)).collect();
        Self { fields, found: vec![false; columns.len()], names: Vec::new(), each }
    }

    fn add(&mut self, row: &Value) -> Result<(), DataError> {
        if self.names.is_empty() {
            self.names.extend(row.as_object().into_iter().flat_map(|object| object.keys().cloned()));
        }
        let texts: Vec<Option<String>> = self.fields.iter().map(|field| field.text(row)).collect();
        self.found.iter_mut().zip(&texts).for_each(|(found, text)| *found |= text.is_some());
        let texts: Vec<Option<&str>> = texts.iter().map(Option::as_deref).collect();
        (self.each)(&texts)
    }

    /// JSON has no header: a column that no row had is a misspelt one.
    fn finish(self, path: &Location) -> Result<(), DataError> {
        let absent = self.found.iter().position(|found| !found).filter(|_| !self.names.is_empty());
        absent.map_or(Ok(()), |column| Err(missing(path, &self.fields[column].name, &self.names)))
    }
}

pub fn read_lines(file: &Blob, columns: &[String], each: &mut EachRow<'_>) -> Result<(), DataError> {
    let path = &file.location();
    let mut rows = Rows::new(columns, each);
    for (i, line) in file.stream().lines().enumerate() {
        let line = line.map_err(|source| file.failed("read", source))?;
        if line.trim().is_empty() {
            continue;
        }
        let row = serde_json::from_str(&line).map_err(|error| failed(path)(&format!("line {}: {error}", i + 1)))?;
        rows.add(&row)?;
    }
    rows.finish(path)
}

pub fn read_array(file: &Blob, columns: &[String], each: &mut EachRow<'_>) -> Result<(), DataError> {
    let path = &file.location();
    let mut items = Items { rows: Rows::new(columns, each), failed: None };
    let mut deserializer = serde_json::Deserializer::from_reader(file.stream());
    let read = deserializer.deserialize_seq(&mut items).and_then(|()| deserializer.end());
    if let Some(error) = items.failed {
        return Err(error);
    }
    read.map_err(|error| match error.io_error_kind() {
        Some(_) => file.failed("read", error.into()),
        None => failed(path)(&error.to_string()),
    })?;
    items.rows.finish(path)
}

/// Takes the items of an array as they come.
struct Items<'a, 'b> {
    rows: Rows<'a, 'b>,
    /// The caller's error, which serde would turn into a string.
    failed: Option<DataError>,
}

impl<'de> Visitor<'de> for &mut Items<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("one array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(row) = items.next_element::<Value>()? {
            if let Err(error) = self.rows.add(&row) {
                self.failed = Some(error);
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}
