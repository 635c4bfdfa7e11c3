//! The file as written: a tree of values, each with its place.

use super::error::{File, Place, RecipeError, nearest};
use std::collections::BTreeMap;
use toml::de::{DeTable, DeValue};

/// A value and its place.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub place: Place,
    pub value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    List(Vec<Node>),
    Table(BTreeMap<String, Node>),
    Other(&'static str),
}

impl Value {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a number",
            Value::Boolean(_) => "a truth value",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
            Value::Other(kind) => kind,
        }
    }
}

/// Parses a TOML document.
pub(super) fn document(file: &File, text: &str) -> Result<Node, RecipeError> {
    tree(text, |at| Place::Line(1 + text[..at.min(text.len())].matches('\n').count()))
        .map_err(|(place, message)| file.error(&place, message))
}

fn tree(text: &str, place: impl Fn(usize) -> Place) -> Result<Node, (Place, String)> {
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        (place(at), error.message().to_owned())
    })?;
    Ok(Node { place: place(0), value: Value::Table(entries(table.get_ref(), &place)?) })
}

fn entries(table: &DeTable<'_>, place: &impl Fn(usize) -> Place) -> Result<BTreeMap<String, Node>, (Place, String)> {
    table
        .iter()
        .map(|(key, value)| Ok((key.get_ref().to_string(), node(value.get_ref(), place(key.span().start), place)?)))
        .collect()
}

fn node(value: &DeValue<'_>, at: Place, place: &impl Fn(usize) -> Place) -> Result<Node, (Place, String)> {
    let value = match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => {
            let parsed = i64::from_str_radix(number.as_str(), number.radix());
            Value::Integer(parsed.map_err(|_| (at.clone(), format!("{} does not fit into 64 bits", number.as_str())))?)
        }
        DeValue::Float(number) => {
            let parsed = number.as_str().parse();
            Value::Float(parsed.map_err(|_| (at.clone(), format!("{} is no number", number.as_str())))?)
        }
        DeValue::Boolean(truth) => Value::Boolean(*truth),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(list) => Value::List(
            list.iter().map(|item| node(item.get_ref(), place(item.span().start), place)).collect::<Result<_, _>>()?,
        ),
        DeValue::Table(table) => Value::Table(entries(table, place)?),
    };
    Ok(Node { place: at, value })
}

/// Applies `--set KEY=VALUE`. `KEY` is a path such as `stage.clip.global_batch` or `data.train.shards`; a stage is
/// named by its kind. `VALUE` is TOML; what is no TOML is taken as a string.
pub(super) fn apply(file: &File, root: &mut Node, text: &str) -> Result<(), RecipeError> {
    let place = Place::Override(text.to_owned());
    let fail = |message: String| Err(file.error(&place, message));
    let Some((path, value)) = text.split_once('=') else {
        return fail("it needs the form KEY=VALUE".to_owned());
    };
    let at = |_| place.clone();
    let parsed = tree(&format!("value = {}", value.trim()), at);
    let parsed = parsed.or_else(|_| tree(&format!("value = {}", quoted(value)), at));
    let mut new = match parsed {
        Ok(Node { value: Value::Table(mut table), .. }) if table.len() == 1 => table.remove("value"),
        _ => None,
    };
    let keys: Vec<&str> = path.trim().split('.').collect();
    let mut node = root;
    for (depth, key) in keys.iter().enumerate() {
        let last = depth + 1 == keys.len();
        node = match &mut node.value {
            Value::Table(table) if last => {
                let Some(new) = new.take() else { return fail(format!("`{value}` is no value")) };
                table.insert((*key).to_owned(), new);
                return Ok(());
            }
            Value::Table(table) => table
                .entry((*key).to_owned())
                .or_insert_with(|| Node { place: place.clone(), value: Value::Table(BTreeMap::new()) }),
            Value::List(stages) => {
                let kinds: Vec<String> = stages.iter().map(kind_of).collect();
                let Some(found) = kinds.iter().position(|kind| kind == key) else {
                    let near = nearest(key, kinds.iter().map(String::as_str));
                    let near = near.map_or(String::new(), |near| format!(", did you mean `{near}`?"));
                    return fail(format!("the recipe has no stage `{key}`{near}"));
                };
                if last {
                    return fail(format!("`{path}` is a whole stage; name one of its keys, such as `{path}.data`"));
                }
                &mut stages[found]
            }
            _ => return fail(format!("`{}` is no table", keys[..depth].join("."))),
        };
    }
    fail("it needs the form KEY=VALUE".to_owned())
}

fn quoted(value: &str) -> String {
    format!("\"{}\"", value.trim().replace('\\', "\\\\").replace('"', "\\\""))
}

fn kind_of(stage: &Node) -> String {
    match &stage.value {
        Value::Table(table) => match table.get("kind").map(|node| &node.value) {
            Some(Value::Text(kind)) => kind.clone(),
            _ => String::new(),
        },
        _ => String::new(),
    }
}

/// A table whose keys are taken one by one; what is left at the end was a mistake.
pub(super) struct Table<'f> {
    pub file: &'f File,
    pub place: Place,
    name: String,
    entries: BTreeMap<String, Node>,
    asked: Vec<&'static str>,
}

impl<'f> Table<'f> {
    pub(super) fn of(file: &'f File, name: &str, node: Node) -> Result<Self, RecipeError> {
        match node.value {
            Value::Table(entries) => {
                Ok(Self { file, place: node.place, name: name.to_owned(), entries, asked: Vec::new() })
            }
            other => Err(file.error(&node.place, format!("`{name}` must be a table, not {}", other.kind()))),
        }
    }

    pub(super) fn empty(file: &'f File, name: &str) -> Self {
        Self { file, place: Place::Line(1), name: name.to_owned(), entries: BTreeMap::new(), asked: Vec::new() }
    }

    /// An error at the table's own place.
    pub(super) fn error(&self, message: impl std::fmt::Display) -> RecipeError {
        self.file.error(&self.place, message)
    }

    /// The key as it is called in messages.
    pub(super) fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<Node> {
        self.asked.push(key);
        self.entries.remove(key)
    }

    /// All that is left, for tables whose keys are names.
    pub(super) fn rest(&mut self) -> BTreeMap<String, Node> {
        std::mem::take(&mut self.entries)
    }

    pub(super) fn table(&mut self, key: &'static str) -> Result<Option<Table<'f>>, RecipeError> {
        let path = self.path(key);
        self.take(key).map(|node| Table::of(self.file, &path, node)).transpose()
    }

    /// Reads a key with `read`, which says what is wrong with its value.
    pub(super) fn get<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Result<Option<T>, RecipeError> {
        let path = self.path(key);
        self.take(key)
            .map(|node| {
                read(&node.value).map_err(|message| self.file.error(&node.place, format!("`{path}` {message}")))
            })
            .transpose()
    }

    /// As [`Table::get`], of a key that must be there.
    pub(super) fn need<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Result<T, RecipeError> {
        let found = self.get(key, read)?;
        found.ok_or_else(|| {
            self.mistyped(&[key]).unwrap_or_else(|| self.error(format!("`{}` is missing", self.path(key))))
        })
    }

    /// The error of a key that was written for one of these, which are required: it names the mistake rather than the gap. Absent
    /// when nothing is like them.
    pub(super) fn mistyped(&self, keys: &[&'static str]) -> Option<RecipeError> {
        self.entries.iter().find_map(|(typed, node)| {
            let key = nearest(typed, keys.iter().copied())?;
            Some(self.file.error(&node.place, self.unknown(typed, &format!("did you mean `{key}`?"))))
        })
    }

    /// Refuses what nobody asked for.
    pub(super) fn finish(self) -> Result<(), RecipeError> {
        let Some((key, node)) = self.entries.iter().next() else { return Ok(()) };
        let near = nearest(key, self.asked.iter().copied())
            .map_or_else(|| format!("known keys: {}", self.asked.join(", ")), |near| format!("did you mean `{near}`?"));
        Err(self.file.error(&node.place, self.unknown(key, &near)))
    }

    fn unknown(&self, key: &str, hint: &str) -> String {
        let whole = self.name.is_empty();
        let place = if whole { format!("of {}", self.file.kind()) } else { format!("in `{}`", self.name) };
        format!("`{key}` is no key {place}; {hint}")
    }
}
