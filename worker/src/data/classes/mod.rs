//! The words of zero-shot classification: classes by number, and the texts around their names.
//!
//! ImageNet's names and OpenAI's templates are built in (`openai-imagenet.json`, `templates.json`, which
//! `tests/golden/zero_shot/make_words.py` makes of open_clip's). Files are a name or a template a line, as CLIP_benchmark's
//! `classnames.txt` and `zeroshot_classification_templates.txt` are, or JSON.

use super::DataError;
use crate::storage::{Location, Storage};
use common::recipe::{ClassBy, ClassNames, Classes, DataPath, Templates};
use std::{collections::BTreeMap, sync::Arc};

const OPENAI_IMAGENET: &str = include_str!("openai-imagenet.json");
const TEMPLATES: &str = include_str!("templates.json");
/// What stands for the class in a template.
const CLASS: &str = "{c}";

/// The classes of a data set, and the templates of all its sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassWords {
    by: ClassBy,
    classes: Vec<Class>,
    templates: Vec<String>,
    sets: Vec<TemplateSet>,
}

/// Templates whose vectors make one classifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateSet {
    /// As it is called in tables.
    pub title: String,
    /// Which of [`ClassWords::templates`].
    pub templates: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(from = "Word")]
struct Class {
    /// What stands for it in the data; absent where its name does.
    label: Option<String>,
    name: String,
}

/// A class in a JSON file.
#[derive(serde::Deserialize)]
#[serde(untagged, expecting = "a class is its name, or [label, name]")]
enum Word {
    Name(String),
    Labelled(String, String),
}

impl From<Word> for Class {
    fn from(word: Word) -> Self {
        match word {
            Word::Name(name) => Self { label: None, name },
            Word::Labelled(label, name) => Self { label: Some(label), name },
        }
    }
}

impl ClassWords {
    /// Reads the words that a recipe means.
    ///
    /// # Errors
    /// When a file is missing, empty or damaged, a class has no name, or a template has no `{c}`.
    pub fn read(storage: &Arc<Storage>, spec: &Classes) -> Result<Self, DataError> {
        let mut words =
            Self { by: spec.by, classes: classes(storage, &spec.names)?, templates: Vec::new(), sets: Vec::new() };
        for set in &spec.templates {
            let texts = templates(storage, set)?;
            let place = |text: String| {
                words.templates.iter().position(|known| *known == text).unwrap_or_else(|| {
                    words.templates.push(text);
                    words.templates.len() - 1
                })
            };
            let templates = texts.into_iter().map(place).collect();
            words.sets.push(TemplateSet { title: set.title(), templates });
        }
        Ok(words)
    }

    /// How many classes there are.
    pub fn classes(&self) -> usize {
        self.classes.len()
    }

    /// The templates of all sets, each once.
    pub fn templates(&self) -> &[String] {
        &self.templates
    }

    /// The sets in the recipe's order.
    pub fn sets(&self) -> &[TemplateSet] {
        &self.sets
    }

    /// A class in one of the templates.
    ///
    /// # Panics
    /// When there is no such class.
    pub fn text(&self, class: usize, template: &str) -> String {
        template.replace(CLASS, &self.classes[class].name)
    }

    /// The number of the class that stands in the data as `written`.
    ///
    /// # Errors
    /// What is wrong with it, to be read behind the sample's name.
    pub fn class_of(&self, written: &str) -> Result<usize, String> {
        let (written, count) = (written.trim(), self.classes.len());
        match self.by {
            ClassBy::Number => match written.parse::<usize>() {
                Ok(number) if number < count => Ok(number),
                Ok(number) => Err(format!(
                    "is of class {number}, and there are {count} names, for the numbers 0 to {}: `names` are those of another \
                     data set, or lack some",
                    count - 1
                )),
                Err(_) => Err(format!(
                    "is of class `{written}`, which is no number: if the data name the classes, set `by = \"name\"`"
                )),
            },
            ClassBy::Name => {
                let is = |class: &Class| class.label.as_deref().unwrap_or(&class.name) == written;
                let mut found =
                    self.classes.iter().enumerate().filter(|(_, class)| is(class)).map(|(number, _)| number);
                match (found.next(), found.next()) {
                    (Some(number), None) => Ok(number),
                    (Some(a), Some(b)) => Err(format!(
                        "is of class `{written}`, and so are called the classes {a} and {b}: give each a label of its own, \
                         in a JSON file of [label, name]"
                    )),
                    _ => Err(format!(
                        "is of class `{written}`, which none of the {count} names is: write `names` as the data write them, \
                         or as a JSON file of [label, name]; if they are numbers, set `by = \"number\"`"
                    )),
                }
            }
        }
    }

    /// BLAKE3 in hex over all that the texts' vectors depend on: names in order, and templates.
    pub fn fingerprint(&self) -> String {
        let names: Vec<&str> = self.classes.iter().map(|class| class.name.as_str()).collect();
        let json = serde_json::to_vec(&(names, &self.templates)).expect("texts are JSON");
        blake3::hash(&json).to_string()
    }
}

fn classes(storage: &Arc<Storage>, names: &ClassNames) -> Result<Vec<Class>, DataError> {
    let (classes, path): (Vec<Class>, _) = match names {
        ClassNames::OpenaiImagenet => {
            return Ok(serde_json::from_str(OPENAI_IMAGENET).expect("what is built in is sound"));
        }
        ClassNames::List(names) => {
            return Ok(names.iter().map(|name| Class { label: None, name: name.clone() }).collect());
        }
        ClassNames::File(path) => (items(storage, path, |name| Class { label: None, name })?, path),
    };
    let wrong = |reason| Err(DataError::Table { path: Location::try_from(path)?, reason });
    if let Some(number) = classes.iter().position(|class| class.name.trim().is_empty()) {
        return wrong(format!("class {number} has no name"));
    }
    match classes.len() {
        0 | 1 => wrong(format!("it has {} names, a classification has two classes or more", classes.len())),
        _ => Ok(classes),
    }
}

fn templates(storage: &Arc<Storage>, set: &Templates) -> Result<Vec<String>, DataError> {
    let built_in = |name: &str| {
        let mut sets: BTreeMap<String, Vec<String>> =
            serde_json::from_str(TEMPLATES).expect("what is built in is sound");
        Ok(sets.remove(name).expect("every set that a recipe may name is built in"))
    };
    let path = match set {
        Templates::Own(texts) => return Ok(texts.clone()),
        Templates::File(path) => path,
        built => return built_in(&built.title()),
    };
    let texts: Vec<String> = items(storage, path, |line| line)?;
    let wrong = |reason| Err(DataError::Table { path: Location::try_from(path)?, reason });
    match texts.iter().find(|text| !text.contains(CLASS)) {
        Some(text) => wrong(format!("the template `{text}` has no {CLASS} where the class belongs")),
        None if texts.is_empty() => wrong("it has no template".to_owned()),
        None => Ok(texts),
    }
}

/// The lines of a text file but for empty ones at its end, or the items of a JSON list.
fn items<T: serde::de::DeserializeOwned>(
    storage: &Arc<Storage>,
    path: &DataPath,
    of_line: impl Fn(String) -> T,
) -> Result<Vec<T>, DataError> {
    let location = Location::try_from(path)?;
    let mut bytes = Vec::new();
    storage.read_all(&location, &mut bytes)?;
    let wrong = |reason: String| DataError::Table { path: location.clone(), reason };
    if location.name().ends_with(".json") {
        return serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()));
    }
    let text = String::from_utf8(bytes).map_err(|_| wrong("it is no UTF-8".to_owned()))?;
    Ok(text.trim_end().lines().map(|line| of_line(line.trim_end().to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::storage;
    use std::path::Path;

    fn spec(by: ClassBy, names: ClassNames, templates: Vec<Templates>) -> Classes {
        Classes { column: ".cls".to_owned(), by, names, templates }
    }

    fn file(folder: &Path, name: &str, text: &str) -> DataPath {
        std::fs::write(folder.join(name), text).unwrap();
        folder.join(name).into()
    }

    #[test]
    fn what_open_clip_publishes_is_built_in() {
        let sets = vec![Templates::One, Templates::Simple, Templates::Openai80];
        let words = ClassWords::read(&storage(), &spec(ClassBy::Name, ClassNames::OpenaiImagenet, sets)).unwrap();
        assert_eq!(words.classes(), 1000);
        let counts: Vec<usize> = words.sets().iter().map(|set| set.templates.len()).collect();
        assert_eq!(counts, [1, 7, 80]);
        // Those that several sets have are read by the LLM once.
        assert_eq!(words.templates().len(), 80);
        assert_eq!(words.text(2, &words.templates()[0]), "a photo of a great white shark.");
        assert_eq!(words.class_of("n01484850"), Ok(2));
        assert!(words.class_of("great white shark").unwrap_err().contains("none of the 1000 names"));
    }

    #[test]
    fn files_are_lines_or_json() {
        let folder = tempfile::tempdir().unwrap();
        let names = file(folder.path(), "names.txt", "tench\ngreat white shark\r\n\n");
        let sets = file(folder.path(), "sets.json", r#"["a photo of a {c}.", "{c}, or {c}"]"#);
        let of = |by, names: &DataPath, sets: &DataPath| {
            let spec = spec(by, ClassNames::File(names.clone()), vec![Templates::File(sets.clone())]);
            ClassWords::read(&storage(), &spec).map_err(|error| error.to_string())
        };
        let words = of(ClassBy::Number, &names, &sets).unwrap();
        assert_eq!(words.sets()[0].title, "sets");
        assert_eq!(words.text(1, &words.templates()[1]), "great white shark, or great white shark");
        assert_eq!(words.class_of("1\n"), Ok(1));
        for (written, expected) in [("2", "the numbers 0 to 1"), ("-1", "no number"), ("shark", "`by = \"name\"`")] {
            let error = words.class_of(written).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let other = of(ClassBy::Number, &file(folder.path(), "more.txt", "tench\nshark\n"), &sets).unwrap();
        assert_ne!(words.fingerprint(), other.fingerprint());

        let labelled = file(folder.path(), "names.json", r#"[["n1", "crane"], ["n2", "crane"], "hen"]"#);
        let words = of(ClassBy::Name, &labelled, &sets).unwrap();
        assert_eq!((words.class_of("n2"), words.class_of("hen")), (Ok(1), Ok(2)));
        let same = file(folder.path(), "same.txt", "crane\ncrane\n");
        let error = of(ClassBy::Name, &same, &sets).unwrap().class_of("crane").unwrap_err();
        assert!(error.contains("the classes 0 and 1"), "{error}");
        for (name, text, expected) in [
            ("a.txt", "tench\n \nshark\n", "class 1 has no name"),
            ("b.txt", "\n", "it has 0 names"),
            ("c.json", "[[\"a\"]]", "a class is its name, or [label, name]"),
            ("none.txt", "", "0 names"),
        ] {
            let error = of(ClassBy::Number, &file(folder.path(), name, text), &sets).unwrap_err();
            assert!(error.contains(expected) && error.contains(name), "{error}");
        }
        let error = of(ClassBy::Number, &names, &file(folder.path(), "t.txt", "a photo of a {}.\n")).unwrap_err();
        assert!(error.contains("has no {c}"), "{error}");
        assert!(of(ClassBy::Number, &folder.path().join("gone.txt").into(), &sets).unwrap_err().contains("gone.txt"));
    }
}
