//! From the file as written to the validated recipe: all but the stages.

use super::{
    AdapterModel, Attention, Benchmark, CaptionColumn, CaptionTable, Captions, DataKind, DataPath, DataSet, Detection,
    Elastic, Faults, IndexPlace, Init, Models, Pooling, Recipe, RowRange, TextModel, TrainedModel, Unmatched,
    VisionModel, classes, distill,
    error::{File, RecipeError},
    mix,
    raw::{self, Node, Table, Value},
    stages,
    text_sets::text_set,
    validate,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

/// A recipe file as it was read.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// What is in it.
    pub text: &'a str,
    /// What it is called in errors.
    pub file: &'a str,
    /// The folder it lies in, absolute: paths of data and models are relative to it.
    pub folder: &'a Path,
    /// The folder the command was given in, absolute: `output` and `checkpoints` are relative to it.
    pub working_directory: &'a Path,
}

/// Reads and validates a recipe, after applying `overrides` of the form `KEY=VALUE`.
///
/// # Errors
/// The first thing that is wrong, with file, line and key.
pub fn parse(source: Source<'_>, overrides: &[String]) -> Result<Recipe, RecipeError> {
    parse_changed(source, overrides, |_, _| Ok(()))
}

/// As [`parse`]; `change` is applied to what was written, after the overrides.
pub(super) fn parse_changed(
    source: Source<'_>,
    overrides: &[String],
    change: impl FnOnce(&File, &mut Node) -> Result<(), RecipeError>,
) -> Result<Recipe, RecipeError> {
    let file = File::of_recipe(source.file);
    let mut root = raw::document(&file, source.text)?;
    for text in overrides {
        raw::apply(&file, &mut root, text)?;
    }
    change(&file, &mut root)?;
    let mut table = Table::of(&file, "", root)?;
    let name = table.need("name", name)?;
    let seed = table.get("seed", unsigned)?.unwrap_or(0);
    let output = source.working_directory.join(table.need("output", text)?);
    let checkpoints = table.get("checkpoints", |value| data_path(value, source.working_directory))?;
    let data = sets(&mut table, "data", |table| data_set(table, source.folder))?;
    let text = sets(&mut table, "text", |table| text_set(table, source.folder))?;
    let model = models(&mut table, source.folder)?;
    let stages = stages::read(&mut table)?;
    let faults = faults(&mut table)?;
    let elastic = table.table("elastic")?.map(elastic).transpose()?;
    let place = table.place.clone();
    table.finish()?;
    let recipe = Recipe { name, seed, output: plain(&output), checkpoints, data, text, model, stages, faults, elastic };
    validate::check(&recipe).map_err(|message| file.error(&place, message))?;
    Ok(recipe)
}

/// The path without `.` and `..`; nothing is looked up.
pub(super) fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                plain.pop();
            }
            std::path::Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

/// Tables by name: `[data.NAME]`, `[text.NAME]`.
fn sets<T>(
    table: &mut Table<'_>,
    section: &'static str,
    read: impl Fn(Table<'_>) -> Result<T, RecipeError>,
) -> Result<BTreeMap<String, T>, RecipeError> {
    let Some(mut sets) = table.table(section)? else { return Ok(BTreeMap::new()) };
    let file = table.file;
    let one = |(name, node): (String, Node)| {
        if let Err(message) = self::name(&Value::Text(name.clone())) {
            return Err(file.error(&node.place, format!("data set `{name}` {message}")));
        }
        Ok((name.clone(), read(Table::of(file, &format!("{section}.{name}"), node)?)?))
    };
    sets.rest().into_iter().map(one).collect()
}

fn data_set(mut table: Table<'_>, folder: &Path) -> Result<DataSet, RecipeError> {
    let kinds = [("webdataset", DataKind::Webdataset), ("parquet", DataKind::Parquet), ("list", DataKind::List)];
    let kind = table.need("kind", |value| choice(value, &kinds))?;
    let shards = table.need("shards", |value| one_or_more(value, |value| data_path(value, folder)))?;
    let broken_limit = table.get("broken_limit", share)?.unwrap_or(0.1);
    let shuffle = mix::shuffle(&mut table)?;
    let images = table.get("images", |value| data_path(value, folder))?;
    let image_column = table.get("image_column", text)?;
    let rows = rows(table.table("rows")?)?;
    let only = table.table("only")?.map(only).transpose()?.unwrap_or_default();
    let benchmark = table.get("benchmark", Benchmark::read)?;
    let vectors = table.get("vectors", |value| data_path(value, folder))?;
    let index = index_place(&mut table, folder)?;
    if kind != DataKind::List && images.is_some() {
        return Err(table.error("`images` is the folder of a list's images: set `kind` to \"list\", or leave it out"));
    }
    if kind == DataKind::Webdataset && (image_column.is_some() || !only.is_empty()) {
        return Err(table.error("`image_column` and `only` are of the kinds parquet and list; tars have no columns"));
    }
    let classes = table.table("classes")?.map(|table| classes::read(table, kind, folder)).transpose()?;
    // A classification has captions only where the recipe says which.
    let usual = if classes.is_some() { None } else { Some(".txt") };
    let captions = captions(table.table("captions")?, folder, usual)?;
    if let Some(classes) = classes.as_ref().filter(|_| captions.table.is_none())
        && !classes.column.starts_with('.')
    {
        return Err(table.error(format!(
            "classes in a column other than the shards' own (`.cls`) need `captions.table`, the file that `{}` is in",
            classes.column
        )));
    }
    table.finish()?;
    Ok(DataSet {
        kind,
        shards,
        captions,
        broken_limit,
        shuffle,
        images,
        image_column,
        rows,
        only,
        index,
        vectors,
        benchmark,
        classes,
    })
}

/// Reads `index`: `"cache"`, `"beside"`, or a folder.
pub(super) fn index_place(table: &mut Table<'_>, folder: &Path) -> Result<IndexPlace, RecipeError> {
    Ok(table.get("index", text)?.map_or(IndexPlace::Cache, |place| match place.as_str() {
        "cache" => IndexPlace::Cache,
        "beside" => IndexPlace::Beside,
        path => IndexPlace::Folder(plain(&folder.join(path))),
    }))
}

pub(super) fn data_path(value: &Value, folder: &Path) -> Result<DataPath, String> {
    DataPath::read(&text(value)?, folder)
}

fn rows(table: Option<Table<'_>>) -> Result<RowRange, RecipeError> {
    let Some(mut table) = table else { return Ok(RowRange::default()) };
    let rows = RowRange { from: table.get("from", unsigned)?.unwrap_or(0), to: table.get("to", unsigned)? };
    if rows.to.is_some_and(|to| to <= rows.from) {
        return Err(table.error("`rows` is empty: `to` must be above `from`"));
    }
    table.finish()?;
    Ok(rows)
}

fn only(mut table: Table<'_>) -> Result<BTreeMap<String, String>, RecipeError> {
    let file = table.file;
    let read = |(name, node): (String, Node)| match text(&node.value) {
        Ok(value) => Ok((name, value)),
        Err(message) => Err(file.error(&node.place, format!("`only.{name}` {message}"))),
    };
    table.rest().into_iter().map(read).collect()
}

/// Reads `captions`; `usual` is the column of captions where the recipe is silent.
fn captions(table: Option<Table<'_>>, folder: &Path, usual: Option<&str>) -> Result<Captions, RecipeError> {
    let own = || usual.map(|name| CaptionColumn { name: name.to_owned(), weight: 1 }).into_iter().collect();
    let Some(mut table) = table else { return Ok(Captions { table: None, columns: own() }) };
    let file = table.get("table", |value| data_path(value, folder))?;
    let key = table.get("key", text)?;
    let join = table.get("join", text)?;
    let choices = [
        ("broken", Unmatched::Broken),
        ("error", Unmatched::Error),
        ("skip", Unmatched::Skip),
        ("caption-only", Unmatched::CaptionOnly),
    ];
    let unmatched = table.get("unmatched", |value| choice(value, &choices))?;
    let columns: Vec<CaptionColumn> = table.table("columns")?.map(columns).transpose()?.unwrap_or_else(own);
    if let (None, Some(word)) = (&file, key.as_ref().map(|_| "key").or(join.as_ref().map(|_| "join"))) {
        return Err(table.error(format!("`captions.{word}` is given without `captions.table`, the file it is about")));
    }
    let parquet = file.map(|file| {
        let join = join.unwrap_or_else(|| "key".to_owned());
        let key = key.unwrap_or_else(|| join.clone());
        CaptionTable { file, key, join, unmatched: unmatched.unwrap_or_default() }
    });
    if parquet.is_none() && columns.iter().any(|column| !column.name.starts_with('.')) {
        return Err(
            table.error("columns other than the shards' own (`.txt`) need `captions.table`, the file they are in")
        );
    }
    if usual.is_some() && columns.iter().all(|column| column.weight == 0) {
        return Err(table.error("no caption column has a weight above 0"));
    }
    table.finish()?;
    Ok(Captions { table: parquet, columns })
}

fn columns(mut table: Table<'_>) -> Result<Vec<CaptionColumn>, RecipeError> {
    let file = table.file;
    let read = |(name, node): (String, Node)| match small(&node.value) {
        Ok(weight) => Ok(CaptionColumn { name, weight }),
        Err(message) => Err(file.error(&node.place, format!("the weight of caption column `{name}` {message}"))),
    };
    table.rest().into_iter().map(read).collect()
}

fn models(table: &mut Table<'_>, folder: &Path) -> Result<Models, RecipeError> {
    let mut models = table.table("model")?.unwrap_or_else(|| Table::empty(table.file, "model"));
    let text = models.table("text")?.map(|table| text_model(table, folder)).transpose()?;
    let vision = models.table("vision")?.map(|table| vision_model(table, folder)).transpose()?;
    let adapter = models.table("adapter")?.map(adapter_model).transpose()?;
    let teacher = models.table("teacher")?.map(|table| distill::teacher(table, folder)).transpose()?;
    let trained = models.table("trained")?.map(|table| trained_model(table, folder)).transpose()?;
    models.finish()?;
    Ok(Models { text, vision, adapter, trained, teacher })
}

fn trained_model(mut table: Table<'_>, folder: &Path) -> Result<TrainedModel, RecipeError> {
    let at = |path: String| plain(&folder.join(path));
    let model = TrainedModel { folder: at(table.need("folder", text)?), llm: table.get("llm", text)?.map(at) };
    table.finish()?;
    Ok(model)
}

pub(super) fn init(table: &mut Table<'_>) -> Result<Init, RecipeError> {
    let choices = [("random", Init::Random), ("pretrained", Init::Pretrained)];
    Ok(table.get("init", |value| choice(value, &choices))?.unwrap_or(Init::Pretrained))
}

fn text_model(mut table: Table<'_>, folder: &Path) -> Result<TextModel, RecipeError> {
    let at = |path: String| plain(&folder.join(path));
    let path = at(table.need("folder", text)?);
    let init = init(&mut table)?;
    let attention = [("bidirectional", Attention::Bidirectional), ("causal", Attention::Causal)];
    let pooling = [("mean", Pooling::Mean), ("mean-caption", Pooling::MeanCaption)];
    let model = TextModel {
        folder: path,
        init,
        attention: table.get("attention", |v| choice(v, &attention))?.unwrap_or(Attention::Bidirectional),
        template: table.get("template", template)?.unwrap_or_else(|| "{caption}".to_owned()),
        pooling: table.get("pooling", |value| choice(value, &pooling))?.unwrap_or(Pooling::Mean),
        max_length: table.get("max_length", positive)?.unwrap_or(512) as usize,
        adapters: table
            .get("adapters", |value| one_or_more(value, text))?
            .unwrap_or_default()
            .into_iter()
            .map(at)
            .collect(),
    };
    table.finish()?;
    Ok(model)
}

fn vision_model(mut table: Table<'_>, folder: &Path) -> Result<VisionModel, RecipeError> {
    let path = plain(&folder.join(table.need("folder", text)?));
    let model = VisionModel { folder: path, init: init(&mut table)? };
    table.finish()?;
    Ok(model)
}

fn adapter_model(mut table: Table<'_>) -> Result<AdapterModel, RecipeError> {
    let model = AdapterModel {
        blocks: table.get("blocks", unsigned)?.unwrap_or(4) as usize,
        expansion: table.get("expansion", positive)?.unwrap_or(2) as usize,
        l2_norm: table.get("l2_norm", boolean)?.unwrap_or(true),
    };
    table.finish()?;
    Ok(model)
}

fn faults(table: &mut Table<'_>) -> Result<Faults, RecipeError> {
    let mut faults = table.table("faults")?.unwrap_or_else(|| Table::empty(table.file, "faults"));
    let read = Faults {
        max_failures: faults.get("max_failures", small)?.unwrap_or(10),
        max_no_progress: faults.get("max_no_progress", small)?.unwrap_or(3),
        storage_wait: faults.get("storage_wait_s", unsigned)?.map_or_else(super::storage_wait, Duration::from_secs),
        detect: Detection::read(&mut faults)?,
    };
    faults.finish()?;
    Ok(read)
}

fn elastic(mut table: Table<'_>) -> Result<Elastic, RecipeError> {
    let read = Elastic {
        min_ranks: table.get("min_ranks", small)?.unwrap_or(1),
        max_ranks: table.get("max_ranks", small)?,
        grace: Duration::from_secs(table.get("grace_s", unsigned)?.unwrap_or(10)),
        spares: table.get("spares", small)?.unwrap_or(0),
    };
    let most = read.max_ranks.unwrap_or(u32::MAX);
    if read.min_ranks == 0 || most < read.min_ranks {
        return Err(table.error("needs 1 <= `min_ranks` <= `max_ranks`"));
    }
    table.finish()?;
    Ok(read)
}

// What values may be. Each says what is wrong with one, to be read after the key.

pub(super) fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::Text(text) if !text.is_empty() => Ok(text.clone()),
        Value::Text(_) => Err("is empty".to_owned()),
        other => Err(format!("must be a string, not {}", other.kind())),
    }
}

fn name(value: &Value) -> Result<String, String> {
    let name = text(value)?;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let whole = name.len() <= 48 && name.chars().all(legal) && name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if whole {
        Ok(name)
    } else {
        Err("must be 1 to 48 letters, digits, `-`, `_` or `.`, and begin with a letter or digit".to_owned())
    }
}

fn template(value: &Value) -> Result<String, String> {
    let template = text(value)?;
    if template.matches("{caption}").count() == 1 {
        Ok(template)
    } else {
        Err("must contain `{caption}` exactly once".to_owned())
    }
}

pub(super) fn unsigned(value: &Value) -> Result<u64, String> {
    match value {
        Value::Integer(number) => u64::try_from(*number).map_err(|_| format!("is {number}, it must be 0 or more")),
        other => Err(format!("must be an integer, not {}", other.kind())),
    }
}

pub(super) fn small(value: &Value) -> Result<u32, String> {
    unsigned(value).and_then(|number| u32::try_from(number).map_err(|_| "is too large".to_owned()))
}

pub(super) fn positive(value: &Value) -> Result<u64, String> {
    unsigned(value)
        .and_then(|number| if number > 0 { Ok(number) } else { Err("is 0, it must be 1 or more".to_owned()) })
}

pub(super) fn float(value: &Value) -> Result<f64, String> {
    match value {
        Value::Float(number) if number.is_finite() => Ok(*number),
        Value::Integer(number) => Ok(*number as f64),
        Value::Float(number) => Err(format!("is {number}, it must be finite")),
        other => Err(format!("must be a number, not {}", other.kind())),
    }
}

/// A number from `low` to `high`.
pub(super) fn within(value: &Value, low: f64, high: f64) -> Result<f64, String> {
    float(value).and_then(|number| {
        let fits = (low..=high).contains(&number);
        if fits { Ok(number) } else { Err(format!("is {number}, it must be from {low} to {high}")) }
    })
}

pub(super) fn share(value: &Value) -> Result<f64, String> {
    within(value, 0.0, 1.0)
}

pub(super) fn boolean(value: &Value) -> Result<bool, String> {
    match value {
        Value::Boolean(truth) => Ok(*truth),
        other => Err(format!("must be true or false, not {}", other.kind())),
    }
}

pub(super) fn choice<T: Copy>(value: &Value, choices: &[(&str, T)]) -> Result<T, String> {
    let typed = text(value)?;
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    let found = choices.iter().find(|(name, _)| *name == typed).map(|(_, choice)| *choice);
    found.ok_or_else(|| format!("is `{typed}`, it must be one of: {}", names.join(", ")))
}

/// One value, or a list of at least one.
pub(super) fn one_or_more<T>(value: &Value, read: impl Fn(&Value) -> Result<T, String>) -> Result<Vec<T>, String> {
    match value {
        Value::List(items) if items.is_empty() => Err("is an empty list".to_owned()),
        Value::List(items) => items.iter().map(|item| read(&item.value)).collect(),
        one => Ok(vec![read(one)?]),
    }
}
