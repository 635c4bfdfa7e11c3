//! The stage `eval`, evaluations during `clip`, and what they compare with.

use super::{
    DataSet, Precision, Recipe, Stage,
    error::{RecipeError, nearest},
    mix,
    raw::{Table, Value},
    read::{boolean, choice, positive, text},
};
use crate::{ids::Step, sampler::Order};
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
    /// What the towers compute in; absent means what `clip` computed in, and fp32 without a `clip` stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
}

/// Evaluations between two steps of `clip`, on the weights as they are then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeriodicEval {
    /// How often.
    pub every: Every,
    /// Data sets to rank or to classify, each by itself.
    pub data: Vec<String>,
    /// Images per forward pass.
    pub chunk: u64,
}

/// A length of training after which something is due, again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Every {
    /// Optimizer steps.
    Steps(u64),
    /// Times through the data, see [`super::Length::Epochs`].
    Epochs(u64),
}

impl Every {
    /// Whether something is due when so many steps are done.
    pub fn is_due(self, step: Step, order: &Order) -> bool {
        match self {
            Self::Steps(steps) => step.0 > 0 && step.0.is_multiple_of(steps),
            Self::Epochs(epochs) => {
                // Of so many epochs the steps grow with their number: the one that ends here is searched by halves.
                let (mut low, mut high) = (1, step.0.max(1));
                while low < high {
                    let middle = low.midpoint(high);
                    if order.steps_of(middle * epochs) < step.0 { low = middle + 1 } else { high = middle }
                }
                step.0 > 0 && order.steps_of(low * epochs) == step.0
            }
        }
    }
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
    /// The 50,000 validation images of ImageNet-1k, classified without a training on its classes.
    Imagenet,
}

impl Benchmark {
    const NAMES: [(&'static str, Self); 6] = [
        ("flickr30k", Self::Flickr30k),
        ("coco", Self::Coco),
        ("sharegpt4v", Self::Sharegpt4v),
        ("urban1k", Self::Urban1k),
        ("docci", Self::Docci),
        ("imagenet", Self::Imagenet),
    ];

    /// As it is called in tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::Flickr30k => "Flickr30k",
            Self::Coco => "COCO 5K",
            Self::Sharegpt4v => "ShareGPT4V-1k",
            Self::Urban1k => "Urban1k",
            Self::Docci => "DOCCI",
            Self::Imagenet => "ImageNet-1k",
        }
    }

    pub(super) fn read(value: &Value) -> Result<Self, String> {
        choice(value, &Self::NAMES)
    }
}

/// Reads the stage.
pub(super) fn read(table: &mut Table<'_>, data: Vec<String>) -> Result<EvalStage, RecipeError> {
    let precisions = [("fp32", Precision::Fp32), ("bf16", Precision::Bf16)];
    Ok(EvalStage {
        data,
        chunk: table.get("chunk", positive)?.unwrap_or(64),
        image_retrieval: table.get("image_retrieval", boolean)?.unwrap_or(true),
        caption_retrieval: table.get("caption_retrieval", pairs)?.unwrap_or_default(),
        precision: table.get("precision", |value| choice(value, &precisions))?,
    })
}

/// Reads `eval` of a `clip` stage.
pub(super) fn periodic(table: &mut Table<'_>) -> Result<Option<PeriodicEval>, RecipeError> {
    let Some(mut eval) = table.table("eval")? else { return Ok(None) };
    let every = match (eval.get("every_steps", positive)?, eval.get("every_epochs", positive)?) {
        (Some(steps), None) => Every::Steps(steps),
        (None, Some(epochs)) => Every::Epochs(epochs),
        _ => return Err(eval.error("`stage.eval` needs either `every_steps` or `every_epochs`")),
    };
    let data = eval.need("data", mix::data)?;
    let read = PeriodicEval { every, data, chunk: eval.get("chunk", positive)?.unwrap_or(64) };
    eval.finish()?;
    Ok(Some(read))
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

impl EvalStage {
    /// Whether the stage needs the towers of a `clip` stage or of `[model.trained]`: captions are ranked against captions
    /// without them.
    pub fn needs_towers(&self, recipe: &Recipe) -> bool {
        let mut sets = self.data.iter().filter_map(|name| recipe.data.get(name));
        sets.any(|set| set.classes.is_some() || self.image_retrieval && set.has_captions())
    }
}

/// Whether the stage has something to do, something to do it with, and each pair is of one of the data sets.
pub(super) fn check(recipe: &Recipe, stage: &EvalStage) -> Result<(), String> {
    let towers = stage.needs_towers(recipe);
    if !towers && stage.caption_retrieval.is_empty() {
        return Err("the `eval` stage has nothing to do: `image_retrieval` is false, `caption_retrieval` names no columns, and \
             none of its data sets has `classes`"
            .to_owned());
    }
    let trains = recipe.stages.iter().take_while(|stage| !matches!(stage, Stage::Eval(_)));
    if towers && recipe.model.trained.is_none() && !trains.into_iter().any(|stage| matches!(stage, Stage::Clip(_))) {
        return Err("stage `eval` needs a model: a `clip` stage before it, or `[model.trained] folder`, which is what `llm2clip \
             export` wrote or another job's output folder; `llm2clip eval --model FOLDER RECIPE` says it on the command line"
            .to_owned());
    }
    caption_pairs(recipe, stage)
}

/// Whether the data sets of evaluations during `clip` are there, and their vectors.
pub(super) fn check_periodic(recipe: &Recipe, periodic: &PeriodicEval) -> Result<(), String> {
    for name in &periodic.data {
        let Some(set) = recipe.data.get(name) else {
            let near = nearest(name, recipe.data.keys().map(String::as_str));
            let near = near.map_or_else(String::new, |near| format!(", did you mean `{near}`?"));
            return Err(format!(
                "`stage.clip.eval.data` names data set `{name}`, but there is no `[data.{name}]`{near}"
            ));
        };
        let before = recipe.stages.iter().take_while(|stage| !matches!(stage, Stage::Clip(_)));
        let embedded = before.into_iter().any(|stage| matches!(stage, Stage::Embed(_)) && stage.data().contains(name));
        if set.vectors.is_none() && !embedded {
            return Err(format!(
                "`stage.clip.eval.data` names data set `{name}`, whose texts no stage embeds: add `{name}` to the `data` of an \
                 `embed` stage before `clip`, or name a folder of its vectors in `data.{name}.vectors`"
            ));
        }
    }
    Ok(())
}

/// Whether data sets are what their benchmark is.
pub(super) fn check_benchmark(name: &str, set: &DataSet) -> Result<(), String> {
    match set.benchmark {
        Some(Benchmark::Imagenet) if set.classes.is_none() => Err(format!(
            "`data.{name}.benchmark` is a classification, which needs the classes' names: `data.{name}.classes = {{ names = \
             \"openai-imagenet\" }}`"
        )),
        Some(benchmark) if benchmark != Benchmark::Imagenet && !set.has_captions() => Err(format!(
            "`data.{name}.benchmark` ranks images and captions, and the data set has no captions: give it `data.{name}.captions`"
        )),
        _ => Ok(()),
    }
}

/// Whether each pair is of one of the data sets.
fn caption_pairs(recipe: &Recipe, stage: &EvalStage) -> Result<(), String> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::{OrderSpec, Tail};

    #[test]
    fn what_is_due_every_so_many_epochs_is_due_where_they_end() {
        for (tail, expected) in [(Tail::Drop, [3, 6, 9, 12]), (Tail::Carry, [4, 7, 11, 14])] {
            // 34 samples are three batches of 10 and a rest.
            let order = Order::new(OrderSpec { tail, ..OrderSpec::plain(1, &[("a", 34)], 10) }).unwrap();
            let due = |every: Every| (0..=14).filter(|step| every.is_due(Step(*step), &order)).collect::<Vec<_>>();
            assert_eq!(due(Every::Epochs(1)), expected);
            assert_eq!(due(Every::Epochs(2)), [expected[1], expected[3]]);
            assert_eq!(due(Every::Steps(5)), [5, 10]);
        }
    }
}
