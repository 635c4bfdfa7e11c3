//! What vectors depend on.

use super::VectorsError;
use common::recipe::{Init, Precision, TeacherModel, TextModel};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// How captions are read: it changes when the same settings give other vectors. 2: a caption's tokens are counted alone.
const READING: &str = "2";
/// How a teacher's captions are read: the tokens are cut to its positions, the vectors are not normalised.
const TEACHING: &str = "clip-text 1";
/// Fields that are a data set's own: two data sets of one encoder differ in them.
const OF_DATA: [&str; 2] = ["data", "vectors"];

/// What a PEFT folder consists of.
const ADAPTER: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// Everything that a caption's vector depends on, by the name under which the file's header states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance(BTreeMap<String, String>);

impl Provenance {
    /// What every vector of this encoder depends on; the weights themselves are read (not built) for their digest.
    pub fn of_encoder(spec: &TextModel, seed: u64, precision: Precision) -> Result<Self, VectorsError> {
        let weights = weights(&spec.folder, spec.init, seed)?;
        let files = spec.adapters.iter().flat_map(|folder| ADAPTER.map(|file| folder.join(file))).collect::<Vec<_>>();
        let adapters = if files.is_empty() { "none".to_owned() } else { digest(&files)? };
        Ok(Self::new([
            ("reading", READING.to_owned()),
            ("weights", weights),
            ("adapters", adapters),
            ("config", digest(&[spec.folder.join("config.json")])?),
            ("tokenizer", digest(&[spec.folder.join("tokenizer.json")])?),
            ("template", spec.template.clone()),
            ("pooling", name(serde_json::json!(spec.pooling))),
            ("attention", name(serde_json::json!(spec.attention))),
            ("max_length", spec.max_length.to_string()),
            ("precision", name(serde_json::json!(precision))),
        ]))
    }

    /// What every vector of this teacher depends on.
    pub fn of_teacher(spec: &TeacherModel, seed: u64, precision: Precision) -> Result<Self, VectorsError> {
        Ok(Self::new([
            ("reading", TEACHING.to_owned()),
            ("weights", weights(&spec.folder, spec.init, seed)?),
            ("config", digest(&[spec.folder.join("config.json")])?),
            ("tokenizer", digest(&[spec.folder.join("tokenizer.json")])?),
            ("precision", name(serde_json::json!(precision))),
        ]))
    }

    fn new<'a>(fields: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        Self(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// The same encoder over the captions of one data set, given the fingerprint of its index.
    pub fn over(&self, data_fingerprint: String) -> Self {
        let mut fields = self.0.clone();
        fields.insert("data".to_owned(), data_fingerprint);
        Self(fields)
    }

    /// As the header's metadata.
    pub fn to_metadata(&self) -> BTreeMap<String, String> {
        self.0.clone()
    }

    /// The first of these fields in which what a header states differs: its name, what the header has, what is expected.
    pub fn difference(&self, found: &Self) -> Option<(String, String, String)> {
        self.0.iter().find_map(|(name, expected)| {
            let found = found.0.get(name).map_or("none", String::as_str);
            (found != expected).then(|| (name.clone(), short(found), short(expected)))
        })
    }

    /// The first field that both have with another value, but for those that are a data set's own: its name, what this
    /// one has, what the other has. Vectors of another encoder say nothing beside these.
    pub fn other_encoder(&self, other: &Self) -> Option<(String, String, String)> {
        let encoder = self.0.iter().filter(|(name, _)| !OF_DATA.contains(&name.as_str()));
        let both = encoder.filter_map(|(name, mine)| other.0.get(name).map(|theirs| (name, mine, theirs)));
        let mut differing = both.filter(|(_, mine, theirs)| mine != theirs);
        differing.next().map(|(name, mine, theirs)| (name.clone(), short(mine), short(theirs)))
    }

    /// Any fields: what vectors that another program made depend on, as far as it is known.
    pub fn named<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self::new(fields.into_iter().map(|(name, value)| (name, value.to_owned())))
    }
}

impl From<BTreeMap<String, String>> for Provenance {
    fn from(fields: BTreeMap<String, String>) -> Self {
        Self(fields)
    }
}

fn name(value: serde_json::Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What weights are, in a word or a digest.
fn weights(folder: &Path, init: Init, seed: u64) -> Result<String, VectorsError> {
    match init {
        Init::Random => Ok(format!("random, seed {seed}")),
        Init::Pretrained => digest(&weight_files(folder)?),
    }
}

/// The weight files of a model folder, sorted: safetensors, or, without any, what `torch.save` wrote.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, VectorsError> {
    let io = |source| VectorsError::Io { operation: "list", path: folder.to_owned(), source };
    let entries = std::fs::read_dir(folder).map_err(io)?.collect::<Result<Vec<_>, _>>().map_err(io)?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    files.sort();
    let of = |ends: &[&str]| {
        let ends = |path: &&PathBuf| path.extension().is_some_and(|end| ends.iter().any(|known| end == *known));
        files.iter().filter(ends).cloned().collect::<Vec<_>>()
    };
    let safe = of(&["safetensors"]);
    Ok(if safe.is_empty() { of(&["pt", "pth", "bin"]) } else { safe })
}

/// BLAKE3 over the files' bytes, one after the other.
fn digest(files: &[PathBuf]) -> Result<String, VectorsError> {
    let mut hasher = blake3::Hasher::new();
    for path in files {
        let io = |source| VectorsError::Io { operation: "read", path: path.clone(), source };
        hasher.update_reader(std::fs::File::open(path).map_err(io)?).map_err(io)?;
    }
    Ok(hasher.finalize().to_string())
}

/// Digests are told apart by their beginning.
fn short(value: &str) -> String {
    let digest = value.len() == 64 && value.bytes().all(|b| b.is_ascii_hexdigit());
    if digest { format!("{}…", &value[..12]) } else { format!("`{value}`") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_that_differs_is_named() {
        let made = Provenance::named([("template", "{caption}"), ("pooling", "mean")]);
        let asked = Provenance::named([("template", "{caption}"), ("pooling", "last")]);
        assert_eq!(made.difference(&made), None);
        let (field, found, expected) = asked.difference(&made).unwrap();
        assert_eq!((field.as_str(), found.as_str(), expected.as_str()), ("pooling", "`mean`", "`last`"));
        assert!(made.difference(&Provenance::named([])).is_some());
        assert_ne!(made.over("a".to_owned()), made.over("b".to_owned()));
    }

    #[test]
    fn two_data_sets_of_one_encoder_differ_in_their_data_alone() {
        let encoder = Provenance::named([("template", "{caption}"), ("pooling", "mean")]);
        let other = Provenance::named([("template", "{caption}"), ("pooling", "last")]);
        assert_eq!(encoder.over("a".to_owned()).other_encoder(&encoder.over("b".to_owned())), None);
        let (field, mine, theirs) = encoder.other_encoder(&other.over("b".to_owned())).unwrap();
        assert_eq!((field.as_str(), mine.as_str(), theirs.as_str()), ("pooling", "`mean`", "`last`"));
        // Of what LLM2CLIP made, nothing is known.
        assert_eq!(encoder.other_encoder(&Provenance::named([("vectors", "s3://b/theirs"), ("data", "a")])), None);
    }
}
