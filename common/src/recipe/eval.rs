//! The stage `eval` and what it compares with.

use super::{
    DataSet, Recipe,
    error::{RecipeError, nearest},
    raw::{Table, Value},
    read::{boolean, choice, positive, text},
};
use serde::{Deserialize, Serialize};

/// Settings of `eval`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalStage {
    /// Data sets to rank, each by itself.
    pub data: Vec<String>,
    /// Images per forward pass.
    pub chunk: u64,
    /// Whether images and texts are ranked, each caption column by itself. Without it neither a `clip` stage nor a vision
    /// tower is needed.
    #[serde(default = "yes")]
    pub image_retrieval: bool,
    /// Pairs of caption columns that are ranked against each other by the LLM's vectors alone, in every one of the data
    /// sets that has both.
    #[serde(default)]
    pub caption_retrieval: Vec<CaptionPair>,
}

fn yes() -> bool {
    true
}

/// Two caption columns. Of a column of several captions (`.caption[*]`) one is meant by its place: `.caption[0]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptionPair {
    /// The one.
    pub first: String,
    /// The other.
    pub second: String,
}

impl CaptionPair {
    /// Whether a data set has text vectors of both.
    pub fn is_of(&self, data: &DataSet) -> bool {
        has(data, &self.first) && has(data, &self.second)
    }
}

/// Whether a data set has text vectors of a column, or of a caption of one of several.
fn has(data: &DataSet, name: &str) -> bool {
    let several = name.strip_suffix(']').and_then(|name| name.rsplit_once('['));
    let several = several.filter(|(_, place)| place.parse::<usize>().is_ok()).map(|(name, _)| format!("{name}[*]"));
    let named = |column: &str| column == name && !name.ends_with("[*]") || several.as_deref() == Some(column);
    data.captions.columns.iter().any(|column| column.weight > 0 && named(&column.name))
}

/// A benchmark whose figures the paper published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Benchmark {
    /// Flickr30k, the 1,000 test images of Karpathy's split, five captions each.
    Flickr30k,
    /// COCO, the 5,000 test images of Karpathy's split, five captions each.
    Coco,
    /// The first 1,000 of ShareGPT4V's captions.
    Sharegpt4v,
    /// Urban1k.
    Urban1k,
    /// DOCCI's test split.
    Docci,
}

impl Benchmark {
    const NAMES: [(&'static str, Self); 5] = [
        ("flickr30k", Self::Flickr30k),
        ("coco", Self::Coco),
        ("sharegpt4v", Self::Sharegpt4v),
        ("urban1k", Self::Urban1k),
        ("docci", Self::Docci),
    ];

    /// As it is called in tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::Flickr30k => "Flickr30k",
            Self::Coco => "COCO 5K",
            Self::Sharegpt4v => "ShareGPT4V-1k",
            Self::Urban1k => "Urban1k",
            Self::Docci => "DOCCI",
        }
    }

    pub(super) fn read(value: &Value) -> Result<Self, String> {
        choice(value, &Self::NAMES)
    }
}

/// Reads the stage.
pub(super) fn read(table: &mut Table<'_>, data: Vec<String>) -> Result<EvalStage, RecipeError> {
    let stage = EvalStage {
        data,
        chunk: table.get("chunk", positive)?.unwrap_or(64),
        image_retrieval: table.get("image_retrieval", boolean)?.unwrap_or(true),
        caption_retrieval: table.get("caption_retrieval", pairs)?.unwrap_or_default(),
    };
    if !stage.image_retrieval && stage.caption_retrieval.is_empty() {
        return Err(table.error(
            "the `eval` stage has nothing to do: `image_retrieval` is false, and `caption_retrieval` names no columns",
        ));
    }
    Ok(stage)
}

fn pairs(value: &Value) -> Result<Vec<CaptionPair>, String> {
    let wrong = || "must be a list of pairs of caption columns: [[\".txt\", \"long_caption\"]]".to_owned();
    let Value::List(items) = value else { return Err(wrong()) };
    let pair = |value: &Value| match value {
        Value::List(two) if two.len() == 2 => {
            let (first, second) = (text(&two[0].value)?, text(&two[1].value)?);
            if first == second {
                return Err(format!("compares `{first}` with itself"));
            }
            Ok(CaptionPair { first, second })
        }
        _ => Err(wrong()),
    };
    items.iter().map(|item| pair(&item.value)).collect()
}

/// Whether each pair is of one of the data sets.
pub(super) fn check(recipe: &Recipe, stage: &EvalStage) -> Result<(), String> {
    for pair in &stage.caption_retrieval {
        let sets = || stage.data.iter().map(|name| (name, &recipe.data[name]));
        if sets().any(|(_, set)| pair.is_of(set)) {
            continue;
        }
        let columns = sets().flat_map(|(_, set)| &set.captions.columns).filter(|column| column.weight > 0);
        let columns: Vec<&str> = columns.map(|column| column.name.as_str()).collect();
        let wrong = if sets().any(|(_, set)| has(set, &pair.first)) { &pair.second } else { &pair.first };
        let near = nearest(wrong, columns.iter().copied());
        let near = near.map_or_else(String::new, |near| format!(", did you mean `{near}`?"));
        return Err(format!(
            "`caption_retrieval` compares `{}` with `{}`, and none of the stage's data sets has text vectors of both; \
             their caption columns of a weight above 0 are: {} (of `x[*]`, name one caption: `x[0]`){near}",
            pair.first,
            pair.second,
            columns.join(", ")
        ));
    }
    Ok(())
}
