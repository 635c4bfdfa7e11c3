//! What a forecast knows of a job's data and models: what is here, what the user said of the rest, and what is assumed.

use super::published;
use crate::{
    data::{DataError, Dataset, Documents, Places},
    model::{
        adapter::AdapterConfig,
        clip_text::ClipTextConfig,
        config,
        llama::LlamaConfig,
        tokenizer::{CaptionTokenizer, TextTokenizer},
        vision::VisionConfig,
    },
    storage::Storage,
};
use common::{
    ids::SampleIndex,
    recipe::{DataSet, Recipe, TextKind, TextModel, TextSet},
};
use serde::Serialize;
use std::{collections::BTreeMap, path::Path, sync::Arc};

/// Tokens of a text of which nothing is known.
const ASSUMED_TOKENS: f64 = 64.0;
/// How many texts of a data set are measured.
const MEASURED: u64 = 512;

/// What the user says of what is not here.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Said {
    /// How many samples a data set has, where it is not here: cc3m=2873538
    #[arg(long = "samples", value_name = "NAME=N", value_parser = number)]
    pub samples: Vec<(String, u64)>,
    /// How many tokens a text of a data set has on average, where it is not here; 64 unless given
    #[arg(long = "tokens", value_name = "NAME=N", value_parser = number)]
    pub tokens: Vec<(String, u64)>,
    /// How wide text vectors are that are there already, where the recipe names no LLM
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    pub text_width: Option<i64>,
}

fn number(text: &str) -> Result<(String, u64), String> {
    let wrong = || format!("`{text}` must have the form NAME=N, such as cc3m=2873538");
    let (name, count) = text.split_once('=').ok_or_else(wrong)?;
    let count = count.replace('_', "").parse().ok().filter(|count| *count > 0).ok_or_else(wrong)?;
    Ok((name.to_owned(), count))
}

/// How something is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Known {
    /// It is here, and was looked at.
    Here,
    /// The user said so.
    Said,
    /// The shape that was published under this name.
    Published,
    /// Nobody knows; a usual number.
    Assumed,
}

/// A data set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Set {
    /// Samples, documents or pairs; absent when nobody knows.
    pub samples: Option<u64>,
    /// How they are known.
    pub samples_known: Known,
    /// Tokens of a text, on average.
    pub tokens: f64,
    /// How the tokens are known.
    pub tokens_known: Known,
}

/// A model's shape.
#[derive(Debug, Clone)]
pub(super) struct Shape<C> {
    /// Its configuration.
    pub config: C,
    /// How it is known.
    pub known: Known,
}

/// Everything that is known.
pub(super) struct Given {
    /// By name.
    pub sets: BTreeMap<String, Set>,
    /// Absent when the recipe names none, or nobody knows it.
    pub llm: Option<Shape<LlamaConfig>>,
    /// The same of the vision tower.
    pub vision: Option<Shape<VisionConfig>>,
    /// The same of the teacher.
    pub teacher: Option<Shape<ClipTextConfig>>,
    /// Absent when the recipe names none, or the vectors' or the shared width is not known.
    pub adapter: Option<AdapterConfig>,
    /// What is not here, a sentence each.
    pub missing: Vec<String>,
}

impl Given {
    /// Looks at models and data; what a stage needs of an absent thing stays absent in its forecast.
    pub fn find(recipe: &Recipe, storage: &Arc<Storage>, said: &Said) -> Self {
        let mut missing = Vec::new();
        let text = recipe.model.text.as_ref();
        let llm: Option<Shape<LlamaConfig>> = text.and_then(|text| shape(&text.folder, "the LLM", &mut missing));
        let vision = recipe.model.vision.as_ref();
        let vision: Option<Shape<VisionConfig>> =
            vision.and_then(|vision| shape(&vision.folder, "the vision tower", &mut missing));
        let teacher = recipe.model.teacher.as_ref();
        let teacher = teacher.and_then(|teacher| shape(&teacher.folder, "the teacher", &mut missing));
        let of = |list: &[(String, u64)], name: &str| list.iter().find(|(said, _)| said == name).map(|(_, n)| *n);
        let tokenizers =
            text.filter(|_| llm.as_ref().is_some_and(|llm| llm.known == Known::Here)).map(Tokenizers::open);
        let tokenizers = match tokenizers.transpose() {
            Ok(tokenizers) => tokenizers,
            Err(error) => {
                missing.push(error.to_string());
                None
            }
        };
        let mut sets = BTreeMap::new();
        let names = recipe.data.keys().chain(recipe.text.keys());
        for name in names.filter(|name| used(recipe, name)) {
            let mut set = Set {
                samples: of(&said.samples, name),
                samples_known: Known::Said,
                tokens: ASSUMED_TOKENS,
                tokens_known: Known::Assumed,
            };
            if set.samples.is_none() {
                let looked = match (recipe.data.get(name), recipe.text.get(name)) {
                    (Some(spec), _) => of_images(storage, (name, spec), tokenizers.as_ref()),
                    (_, Some(spec)) => of_texts(storage, spec, tokenizers.as_ref()),
                    _ => unreachable!("a name is of one or the other"),
                };
                match looked {
                    Ok((count, measured)) => {
                        (set.samples, set.samples_known) = (Some(count), Known::Here);
                        (set.tokens, set.tokens_known) =
                            measured.map_or((ASSUMED_TOKENS, Known::Assumed), |n| (n, Known::Here));
                    }
                    Err(error) => {
                        missing.push(format!("data set `{name}`: {error}; --samples {name}=N says how many it has"))
                    }
                }
            }
            if let Some(tokens) = of(&said.tokens, name) {
                (set.tokens, set.tokens_known) = (tokens as f64, Known::Said);
            }
            sets.insert(name.clone(), set);
        }
        let input = llm.as_ref().map(|llm| llm.config.hidden_size).or(said.text_width);
        if input.is_none() && recipe.model.adapter.is_some() {
            missing.push("the text vectors' width: --text-width N says it".to_owned());
        }
        let adapter = adapter(recipe, input, vision.as_ref());
        Self { sets, llm, vision, teacher, adapter, missing }
    }
}

/// Whether a stage names the data set.
fn used(recipe: &Recipe, name: &str) -> bool {
    recipe.stages.iter().any(|stage| stage.data().iter().any(|of_stage| of_stage == name))
}

fn shape<C: serde::de::DeserializeOwned>(folder: &Path, what: &str, missing: &mut Vec<String>) -> Option<Shape<C>> {
    match config::read(folder) {
        Ok(config) => Some(Shape { config, known: Known::Here }),
        Err(error) => {
            missing.push(format!("{what}: {error}"));
            published::config(folder).map(|config| Shape { config, known: Known::Published })
        }
    }
}

fn adapter(recipe: &Recipe, input: Option<i64>, vision: Option<&Shape<VisionConfig>>) -> Option<AdapterConfig> {
    let spec = recipe.model.adapter.as_ref()?;
    Some(AdapterConfig {
        input: input?,
        output: vision?.config.width(),
        blocks: spec.blocks as i64,
        expansion: spec.expansion as i64,
        l2_norm: spec.l2_norm,
    })
}

/// How the LLM's texts become tokens.
struct Tokenizers {
    captions: CaptionTokenizer,
    documents: TextTokenizer,
}

impl Tokenizers {
    fn open(text: &TextModel) -> Result<Self, crate::model::ModelError> {
        Ok(Self {
            captions: CaptionTokenizer::open(&text.folder, &text.template, text.max_length, text.pooling)?,
            documents: TextTokenizer::open(&text.folder)?,
        })
    }
}

/// Some numbers below `count`, evenly apart.
fn some(count: u64) -> impl Iterator<Item = u64> {
    let step = count.div_ceil(MEASURED).max(1);
    (0..count).step_by(usize::try_from(step).unwrap_or(usize::MAX))
}

fn mean(lengths: &[usize]) -> Option<f64> {
    (!lengths.is_empty()).then(|| lengths.iter().sum::<usize>() as f64 / lengths.len() as f64)
}

/// Samples, and the mean length of a caption that is drawn.
fn of_images(
    storage: &Arc<Storage>,
    (name, spec): (&str, &DataSet),
    tokenizers: Option<&Tokenizers>,
) -> Result<(u64, Option<f64>), DataError> {
    let data = Dataset::open(storage, name, spec)?;
    let Some(tokenizers) = tokenizers else { return Ok((data.len(), None)) };
    let (mut sum, mut weights) = (0.0, 0.0);
    for (column, spec) in data.columns().iter().enumerate().filter(|(_, spec)| spec.weight > 0) {
        let mut lengths = Vec::new();
        for sample in some(data.len()) {
            let caption = data.caption(SampleIndex(sample), column)?;
            lengths.extend(tokenizers.captions.encode(&caption).ok().map(|encoded| encoded.ids.len()));
        }
        if let Some(length) = mean(&lengths) {
            sum += length * f64::from(spec.weight);
            weights += f64::from(spec.weight);
        }
    }
    Ok((data.len(), (weights > 0.0).then(|| sum / weights)))
}

/// Rows, and the mean length of a document, or of a query or positive.
fn of_texts(
    storage: &Arc<Storage>,
    spec: &TextSet,
    tokenizers: Option<&Tokenizers>,
) -> Result<(u64, Option<f64>), DataError> {
    let columns: Vec<&str> = match &spec.kind {
        TextKind::Documents { column } => vec![column],
        TextKind::Pairs { .. } => vec!["query", "positive"],
    };
    let (mut lengths, mut rows) = (Vec::new(), 0);
    for column in columns {
        let documents = Documents::open(storage, &spec.files, column, &Places::new(&spec.index))?;
        rows = documents.len();
        let Some(tokenizers) = tokenizers else { continue };
        for row in some(rows) {
            let text = documents.text(row)?;
            let count = match &spec.kind {
                TextKind::Documents { .. } => tokenizers.documents.tokens_with_ends(&text).ok().map(|ids| ids.len()),
                TextKind::Pairs { .. } => tokenizers.captions.encode(&text).ok().map(|encoded| encoded.ids.len()),
            };
            lengths.extend(count);
        }
    }
    Ok((rows, mean(&lengths)))
}
