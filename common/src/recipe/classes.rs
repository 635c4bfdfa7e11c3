//! What makes a data set a classification: `[data.NAME.classes]`.

use super::{
    CaptionColumn, Captions, DataKind, DataPath, DataSet,
    error::{RecipeError, nearest},
    raw::{Table, Value},
    read::{choice, data_path, text},
};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The class of every image, and the words for each class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Classes {
    /// Where an image's class is: a caption column's name, such as `.cls` of a tar or `.class`, a folder tree's first folder.
    pub column: String,
    /// What stands there.
    pub by: ClassBy,
    /// The classes' names, in the order of their numbers.
    pub names: ClassNames,
    /// Sets of templates; each makes a classifier of its own.
    pub templates: Vec<Templates>,
}

/// How an image's class is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClassBy {
    /// As its number, from 0.
    Number,
    /// As its label where `names` has labels, else as its name.
    Name,
}

/// Where the classes' names come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClassNames {
    /// ImageNet's 1,000 as OpenAI wrote them, with their WordNet numbers as labels.
    OpenaiImagenet,
    /// A file: `.txt` with a name a line, or `.json` with a list of names or of [label, name].
    File(DataPath),
    /// The recipe.
    List(Vec<String>),
}

/// Texts around a class's name; `{c}` stands for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Templates {
    /// `a photo of a {c}.`
    One,
    /// The seven that OpenAI's notebook ends with.
    Simple,
    /// The 80 that OpenAI chose for ImageNet.
    #[serde(rename = "openai-80")]
    Openai80,
    /// A file: `.txt` with a template a line, or `.json` with a list of them.
    File(DataPath),
    /// The recipe's own.
    Own(Vec<String>),
}

/// What stands for the class in a template.
const CLASS: &str = "{c}";
const BUILT_IN_NAMES: &str = "openai-imagenet";
const BUILT_IN: [(&str, Templates); 3] =
    [("one", Templates::One), ("simple", Templates::Simple), ("openai-80", Templates::Openai80)];

impl Templates {
    /// As it is called in tables: its name, the file's, or `own`.
    pub fn title(&self) -> String {
        match self {
            Self::File(path) => {
                let path = path.to_string();
                let name = path.rsplit('/').next().unwrap_or(&path);
                name.rsplit_once('.').map_or(name, |(stem, _)| stem).to_owned()
            }
            Self::Own(_) => "own".to_owned(),
            built_in => {
                let found = BUILT_IN.into_iter().find(|(_, set)| set == built_in);
                found.expect("every set that is built in has a name").0.to_owned()
            }
        }
    }
}

impl DataSet {
    /// Whether texts are drawn for its images; a classification may have none.
    pub fn has_captions(&self) -> bool {
        self.captions.columns.iter().any(|column| column.weight > 0)
    }

    /// The same images with their class as the only text, one image without which is broken; absent when it has no classes.
    pub fn as_classification(&self) -> Option<Self> {
        let classes = self.classes.as_ref()?;
        let own = classes.column.starts_with('.');
        let table = self.captions.table.clone().filter(|_| !own);
        let columns = vec![CaptionColumn { name: classes.column.clone(), weight: 1 }];
        Some(Self { captions: Captions { table, columns }, vectors: None, classes: None, ..self.clone() })
    }
}

/// Reads `[data.NAME.classes]` of a data set of this kind.
pub(super) fn read(mut table: Table<'_>, kind: DataKind, folder: &Path) -> Result<Classes, RecipeError> {
    let usual = match kind {
        DataKind::Webdataset => ".cls",
        DataKind::List => ".class",
        DataKind::Parquet => ".label",
    };
    let column = table.get("column", text)?.unwrap_or_else(|| usual.to_owned());
    // A folder has a name; everywhere else classes are numbered as a rule.
    let by = if column == ".class" { ClassBy::Name } else { ClassBy::Number };
    let classes = Classes {
        column,
        by: table
            .get("by", |value| choice(value, &[("number", ClassBy::Number), ("name", ClassBy::Name)]))?
            .unwrap_or(by),
        names: table.need("names", |value| names(value, folder))?,
        templates: table
            .get("templates", |value| templates(value, folder))?
            .unwrap_or_else(|| vec![Templates::One, Templates::Openai80]),
    };
    table.finish()?;
    Ok(classes)
}

fn names(value: &Value, folder: &Path) -> Result<ClassNames, String> {
    match value {
        Value::List(items) => {
            let names = items.iter().map(|item| text(&item.value)).collect::<Result<Vec<_>, _>>()?;
            if names.len() < 2 {
                return Err(format!("has {} names, a classification has two classes or more", names.len()));
            }
            Ok(ClassNames::List(names))
        }
        value => match text(value)?.as_str() {
            BUILT_IN_NAMES => Ok(ClassNames::OpenaiImagenet),
            name if is_file(name) => Ok(ClassNames::File(data_path(value, folder)?)),
            name => {
                let near = meant(name, [BUILT_IN_NAMES]);
                Err(format!("is `{name}`, it must be \"{BUILT_IN_NAMES}\", a list, or a file .txt or .json{near}"))
            }
        },
    }
}

/// One set, or several: names of those that are built in, files, and templates of the recipe's own, which are one set.
fn templates(value: &Value, folder: &Path) -> Result<Vec<Templates>, String> {
    let one = std::slice::from_ref(value);
    let items: Vec<&Value> = match value {
        Value::List(items) => items.iter().map(|item| &item.value).collect(),
        _ => one.iter().collect(),
    };
    let (mut sets, mut own) = (Vec::new(), Vec::new());
    for item in items {
        let typed = text(item)?;
        if typed.contains(CLASS) {
            own.push(typed);
        } else if let Some((_, set)) = BUILT_IN.into_iter().find(|(name, _)| *name == typed) {
            sets.push(set);
        } else if is_file(&typed) {
            sets.push(Templates::File(data_path(item, folder)?));
        } else {
            let known = BUILT_IN.map(|(name, _)| name);
            let near = meant(&typed, known);
            return Err(format!(
                "has `{typed}`, which is no template (it has no {CLASS} for the class), no file .txt or .json, and none of: \
                 {}{near}",
                known.join(", ")
            ));
        }
    }
    if !own.is_empty() {
        sets.push(Templates::Own(own));
    }
    let titles: Vec<String> = sets.iter().map(Templates::title).collect();
    match titles.iter().enumerate().find(|(number, title)| titles[..*number].contains(title)) {
        Some((_, title)) => Err(format!("has two sets that are called `{title}`: results would not tell them apart")),
        None if sets.is_empty() => Err("is an empty list".to_owned()),
        None => Ok(sets),
    }
}

fn is_file(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, ending)| ["txt", "json"].contains(&ending))
}

fn meant<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(typed, known).map_or_else(String::new, |near| format!(", did you mean `{near}`?"))
}

#[cfg(test)]
mod tests {
    use super::{super::read::parse, *};
    use crate::recipe::{Recipe, Source};

    const RECIPE: &str = r#"name = "zero-shot"
output = "out"
[data.pictures]
kind = "list"
shards = "val"
[data.pictures.classes]
names = "openai-imagenet"
[model.trained]
folder = "export"
[[stage]]
kind = "embed"
data = "pictures"
[[stage]]
kind = "eval"
data = "pictures"
"#;

    fn read(text: &str) -> Result<Recipe, RecipeError> {
        let here = Path::new("/here");
        parse(Source { text, file: "r.toml", folder: here, working_directory: here }, &[])
    }

    fn with(from: &str, to: &str) -> Result<Recipe, RecipeError> {
        assert!(RECIPE.contains(from), "{from}");
        read(&RECIPE.replacen(from, to, 1))
    }

    #[test]
    fn a_folder_tree_is_classified_by_name_and_a_tar_by_number() {
        let recipe = read(RECIPE).unwrap();
        let set = &recipe.data["pictures"];
        let classes = set.classes.as_ref().unwrap();
        assert_eq!((classes.column.as_str(), classes.by), (".class", ClassBy::Name));
        assert_eq!(classes.templates, [Templates::One, Templates::Openai80]);
        assert!(!set.has_captions());
        let read = set.as_classification().unwrap();
        assert_eq!(read.captions.columns, [CaptionColumn { name: ".class".to_owned(), weight: 1 }]);
        assert_eq!(serde_json::from_str::<Recipe>(&serde_json::to_string(&recipe).unwrap()).unwrap(), recipe);
        let tars = with("\"list\"", "\"webdataset\"").unwrap();
        let classes = tars.data["pictures"].classes.as_ref().unwrap();
        assert_eq!((classes.column.as_str(), classes.by), (".cls", ClassBy::Number));
    }

    #[test]
    fn sets_of_templates_are_named_or_written_down() {
        let of = |line: &str| {
            let recipe = with("names =", &format!("templates = {line}\nnames ="))?;
            let classes = recipe.data["pictures"].classes.clone().unwrap();
            Ok::<_, RecipeError>(classes.templates.iter().map(Templates::title).collect::<Vec<_>>())
        };
        assert_eq!(of("\"simple\"").unwrap(), ["simple"]);
        assert_eq!(
            of("[\"openai-80\", \"a {c}\", \"the {c}\", \"words/mine.txt\"]").unwrap(),
            ["openai-80", "mine", "own"]
        );
        for (line, expected) in [
            ("\"openai-8\"", "did you mean `openai-80`?"),
            ("[\"a photo of a {}.\"]", "it has no {c} for the class"),
            ("[\"one\", \"one\"]", "two sets that are called `one`"),
            ("[]", "is an empty list"),
            ("[3]", "must be a string"),
        ] {
            let error = of(line).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("r.toml:7"), "{error}\nshould say\n{expected}");
        }
    }

    #[test]
    fn mistakes_are_told_with_line_key_and_what_was_meant() {
        for (from, to, expected) in [
            ("names =", "nams =", "r.toml:7: `nams` is no key in `data.pictures.classes`; did you mean `names`?"),
            ("openai-imagenet", "openai-imagnet", "did you mean `openai-imagenet`?"),
            ("\"openai-imagenet\"", "[\"a\"]", "has 1 names, a classification has two classes or more"),
            (
                "names =",
                "by = \"nmae\"\nnames =",
                "`data.pictures.classes.by` is `nmae`, it must be one of: number, name",
            ),
            ("names =", "column = \"label\"\nnames =", "need `captions.table`"),
            (
                "[model.trained]\nfolder = \"export\"\n",
                "[model.text]\nfolder = \"llm\"\n",
                "stage `eval` needs a model: a `clip` stage before it, or `[model.trained] folder`",
            ),
            (
                "kind = \"embed\"\ndata = \"pictures\"\n",
                "kind = \"embed\"\ndata = \"picture\"\n",
                "did you mean `pictures`?",
            ),
            (
                "[data.pictures.classes]\nnames = \"openai-imagenet\"\n",
                "benchmark = \"imagenet\"\n",
                "`data.pictures.benchmark` is a classification, which needs the classes' names",
            ),
        ] {
            let error = with(from, to).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}\nshould say\n{expected}");
        }
    }

    #[test]
    fn a_set_without_captions_trains_nothing() {
        let clip = "[[stage]]\nkind = \"clip\"\ndata = \"pictures\"\nglobal_batch = 2\nsteps = 1\noptimizer = { learning_rate = 1 }\n";
        let text = RECIPE.replace(
            "[model.trained]\nfolder = \"export\"",
            "[model.text]\nfolder = \"llm\"\n[model.vision]\nfolder = \"vit\"\n[model.adapter]",
        );
        let text = text.replacen("[[stage]]\nkind = \"eval\"", &format!("{clip}[[stage]]\nkind = \"eval\""), 1);
        let error = read(&text).unwrap_err().to_string();
        assert!(error.contains("stage `clip` learns from captions, and data set `pictures` has none"), "{error}");
    }
}
