//! Any recipe as one that only evaluates: `llm2clip eval --model FOLDER RECIPE`.

use super::{
    Recipe, RecipeError, Source,
    error::{File, Place},
    raw::{Node, Value},
    read::parse_changed,
};
use std::{collections::BTreeMap, path::Path};

/// What the command line says of the model.
#[derive(Debug, Clone, Copy)]
pub struct Evaluation<'a> {
    /// `[model.trained] folder`.
    pub model: &'a Path,
    /// `[model.trained] llm`.
    pub llm: Option<&'a Path>,
}

/// What is put behind the recipe's `output`, so that the evaluation of one model never stands in the folder of another.
const SUFFIX: &str = "-eval";

/// Reads a recipe for the evaluation of a model: of its stages `eval` stays, and `embed` over the data sets of `eval`; its
/// models are those of the folder; its output folder is another one, unless an override names it.
///
/// # Errors
/// As [`super::parse`], and when there is no stage `eval`.
pub fn parse_evaluation(
    source: Source<'_>,
    overrides: &[String],
    evaluation: Evaluation<'_>,
) -> Result<Recipe, RecipeError> {
    parse_changed(source, overrides, |file, root| change(file, root, evaluation))
}

fn change(file: &File, root: &mut Node, evaluation: Evaluation<'_>) -> Result<(), RecipeError> {
    let said = Place::Override(format!("model.trained.folder={}", evaluation.model.display()));
    let Value::Table(recipe) = &mut root.value else { return Ok(()) };
    let mut stages = match recipe.remove("stage") {
        Some(Node { value: Value::List(stages), .. }) => stages,
        _ => Vec::new(),
    };
    let Some(data) = stages.iter().find(|stage| is(stage, "eval")).map(|stage| entry(stage, "data").cloned()) else {
        return Err(
            file.error(&root.place, "the recipe has no stage `eval`, which says what is evaluated: add `[[stage]]`")
        );
    };
    stages.retain(|stage| is(stage, "eval") || is(stage, "embed"));
    if !stages.iter().any(|stage| is(stage, "embed")) {
        let kind = Node { place: said.clone(), value: Value::Text("embed".to_owned()) };
        let table = BTreeMap::from([("kind".to_owned(), kind)]);
        stages.insert(0, Node { place: said.clone(), value: Value::Table(table) });
    }
    for stage in stages.iter_mut().filter(|stage| is(stage, "embed")) {
        if let (Value::Table(table), Some(data)) = (&mut stage.value, &data) {
            table.insert("data".to_owned(), data.clone());
        }
    }
    recipe.insert("stage".to_owned(), Node { place: root.place.clone(), value: Value::List(stages) });
    recipe.insert("model".to_owned(), model(&said, evaluation));
    if let Some(Node { place: Place::Line(_), value: Value::Text(output) }) = recipe.get_mut("output") {
        output.push_str(SUFFIX);
    }
    Ok(())
}

fn model(place: &Place, evaluation: Evaluation<'_>) -> Node {
    let path = |path: &Path| Node { place: place.clone(), value: Value::Text(path.display().to_string()) };
    let folder = ("folder".to_owned(), path(evaluation.model));
    let llm = evaluation.llm.map(|llm| ("llm".to_owned(), path(llm)));
    let table = |entries| Node { place: place.clone(), value: Value::Table(entries) };
    let trained = table(std::iter::once(folder).chain(llm).collect());
    table(BTreeMap::from([("trained".to_owned(), trained)]))
}

fn entry<'a>(stage: &'a Node, key: &str) -> Option<&'a Node> {
    match &stage.value {
        Value::Table(table) => table.get(key),
        _ => None,
    }
}

fn is(stage: &Node, kind: &str) -> bool {
    matches!(entry(stage, "kind").map(|node| &node.value), Some(Value::Text(found)) if found == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Stage;

    const RECIPE: &str = r#"name = "small"
output = "runs/small"
[data.train]
kind = "webdataset"
shards = "train.tar"
[data.val]
kind = "webdataset"
shards = "val.tar"
[model]
text = { folder = "llm" }
vision = { folder = "vit" }
adapter = {}
[[stage]]
kind = "embed"
data = ["train", "val"]
batch_tokens = 4096
[[stage]]
kind = "clip"
data = "train"
global_batch = 8
steps = 2
optimizer = { learning_rate = 1e-3 }
[[stage]]
kind = "eval"
data = "val"
[[stage]]
kind = "export"
"#;

    fn read(text: &str, overrides: &[&str]) -> Result<Recipe, RecipeError> {
        let here = Path::new("/here");
        let source = Source { text, file: "r.toml", folder: here, working_directory: here };
        let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
        parse_evaluation(source, &overrides, Evaluation { model: Path::new("/models/mine"), llm: None })
    }

    #[test]
    fn of_a_training_what_evaluates_stays_in_a_folder_of_its_own() {
        let recipe = read(RECIPE, &[]).unwrap();
        let kinds: Vec<&str> = recipe.stages.iter().map(Stage::kind).collect();
        assert_eq!(kinds, ["embed", "eval"]);
        assert_eq!(recipe.stages[0].data(), ["val"]);
        assert!(matches!(&recipe.stages[0], Stage::Embed(embed) if embed.batch_tokens == 4096));
        assert_eq!(recipe.output, Path::new("/here/runs/small-eval"));
        assert_eq!(recipe.model.trained.as_ref().unwrap().folder, Path::new("/models/mine"));
        assert!(recipe.model.text.is_none() && recipe.model.vision.is_none() && recipe.model.adapter.is_none());
        assert_eq!(read(RECIPE, &["output=there"]).unwrap().output, Path::new("/here/there"));
    }

    #[test]
    fn a_recipe_without_an_evaluation_is_told() {
        let text = RECIPE.replace("[[stage]]\nkind = \"eval\"\ndata = \"val\"\n", "");
        let error = read(&text, &[]).unwrap_err().to_string();
        assert!(error.contains("r.toml:1") && error.contains("no stage `eval`"), "{error}");
        let error = read(&RECIPE.replace("kind = \"eval\"", "kind = \"eval\"\nchnk = 3"), &[]).unwrap_err().to_string();
        assert!(error.contains("did you mean `chunk`?"), "{error}");
    }
}
