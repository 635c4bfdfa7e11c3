//! The stages that tune the LLM, and what it is after them.

use super::{
    Init, Recipe, Stage, TextModel, Training,
    error::RecipeError,
    raw::{Node, Table, Value},
    read::{boolean, choice, one_or_more, positive, small, text, within},
};
use crate::manifest::paths;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Settings of `mntp`: masked next-token prediction (BehnamGhader et al. 2024, "LLM2Vec", section 2.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MntpStage {
    /// What every training has; a sample is a block.
    #[serde(flatten)]
    pub training: Training,
    /// Tokens of a block.
    pub block: u32,
    /// What becomes of tokens that fill no block.
    pub remainder: Remainder,
    /// Which tokens are to be predicted, and what stands in their place.
    pub mask: Masking,
    /// What is trained; absent means all weights.
    pub lora: Option<Lora>,
}

/// What becomes of tokens that fill no block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remainder {
    /// Only the last tokens of a data set are dropped, fewer than a block.
    Once,
    /// At the end of every so many rows, as the reference's map over batches of 1,000 rows does: up to a block each.
    Every(u32),
}

/// Which tokens are to be predicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Masking {
    /// The share of tokens, 0 to 1.
    pub rate: f64,
    /// The token of the vocabulary that stands for a masked one.
    pub token: String,
    /// What stands in a masked token's place.
    pub replacement: Replacement,
}

/// What stands in a masked token's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Replacement {
    /// The mask token in 80 %, any token in 10 %, itself in 10 % (Devlin et al. 2019, section 3.1).
    Bert,
    /// The mask token.
    All,
}

/// Settings of `contrast`: supervised SimCSE over captions (LLM2CLIP, section 3.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContrastStage {
    /// What every training has; a sample is a pair.
    #[serde(flatten)]
    pub training: Training,
    /// How an image's captions make a pair, by data set; files of pairs need none.
    pub pairs: BTreeMap<String, PairRule>,
    /// The factor on cosines: 1 / temperature.
    pub scale: f64,
    /// Whether each pair brings a text that is none of its own as one more negative for all.
    pub negatives: bool,
    /// What is trained; absent means all weights.
    pub lora: Option<Lora>,
}

/// How an image's captions make a pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairRule {
    /// A short and a long caption; either is the query equally often (the public code).
    ShortLong {
        /// The column of the short one.
        short: String,
        /// The column of the long one.
        long: String,
        /// Before a short caption that seeks a long one.
        seeks_long: Option<String>,
        /// Before a long caption that seeks a short one.
        seeks_short: Option<String>,
    },
    /// Two captions of different columns, drawn by the columns' weights (the paper, appendix C.1).
    TwoOf {
        /// Before the query.
        instruction: Option<String>,
    },
    /// A caption drawn by the columns' weights, twice: what dropout makes of it tells the two apart (Gao et al. 2021,
    /// "SimCSE", unsupervised).
    Views,
}

/// Low-rank updates (Hu et al. 2021).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// r.
    pub rank: u32,
    /// α: updates are scaled by α/r.
    pub alpha: f64,
    /// The probability with which an input of an update is zeroed in training.
    pub dropout: f64,
    /// The layers, by the ends of their names; none means every linear layer of the model's blocks.
    pub targets: Vec<String>,
}

/// All linear layers of a Llama's blocks.
const TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

pub(super) fn mntp(table: &mut Table<'_>, training: Training) -> Result<MntpStage, RecipeError> {
    let remainder = |value: &Value| match value {
        Value::Text(word) if word == "once" => Ok(Remainder::Once),
        other => small(other)
            .ok()
            .filter(|rows| *rows > 0)
            .map(Remainder::Every)
            .ok_or_else(|| "must be \"once\" or a number of rows".to_owned()),
    };
    Ok(MntpStage {
        training,
        block: table.get("block", |value| positive(value).and(small(value)))?.unwrap_or(512),
        remainder: table.get("remainder", remainder)?.unwrap_or(Remainder::Once),
        mask: mask(table)?,
        lora: lora(table, &TARGETS)?,
    })
}

fn mask(table: &mut Table<'_>) -> Result<Masking, RecipeError> {
    let mut mask = table.table("mask")?.unwrap_or_else(|| Table::empty(table.file, "stage.mask"));
    let replacements = [("bert", Replacement::Bert), ("all", Replacement::All)];
    let read = Masking {
        rate: mask.get("rate", |value| within(value, 1e-3, 0.95))?.unwrap_or(0.2),
        token: mask.get("token", text)?.unwrap_or_else(|| "_".to_owned()),
        replacement: mask.get("replacement", |value| choice(value, &replacements))?.unwrap_or(Replacement::Bert),
    };
    mask.finish()?;
    Ok(read)
}

pub(super) fn contrast(table: &mut Table<'_>, training: Training) -> Result<ContrastStage, RecipeError> {
    let pairs = table.table("pairs")?.map(|sets| pairs(sets, &training.data)).transpose()?.unwrap_or_default();
    Ok(ContrastStage {
        training,
        pairs,
        scale: table.get("scale", |value| within(value, 1e-3, 1e3))?.unwrap_or(50.0),
        negatives: table.get("negatives", boolean)?.unwrap_or(true),
        lora: lora(table, &TARGETS)?,
    })
}

/// `[stage.pairs]`: a rule by data set.
fn pairs(mut sets: Table<'_>, data: &[String]) -> Result<BTreeMap<String, PairRule>, RecipeError> {
    let file = sets.file;
    let read = |(name, node): (String, Node)| {
        if !data.contains(&name) {
            let message =
                format!("`stage.pairs` names `{name}`, which is not in the stage's `data` ({})", data.join(", "));
            return Err(file.error(&node.place, message));
        }
        let rule = pair_rule(Table::of(file, &format!("stage.pairs.{name}"), node)?)?;
        Ok((name, rule))
    };
    sets.rest().into_iter().map(read).collect()
}

fn pair_rule(mut table: Table<'_>) -> Result<PairRule, RecipeError> {
    let rules = [("short-long", 0), ("two-of", 1), ("views", 2)];
    let rule = match table.need("rule", |value| choice(value, &rules))? {
        0 => PairRule::ShortLong {
            short: table.need("short", text)?,
            long: table.need("long", text)?,
            seeks_long: table.get("seeks_long", text)?,
            seeks_short: table.get("seeks_short", text)?,
        },
        1 => PairRule::TwoOf { instruction: table.get("instruction", text)? },
        _ => PairRule::Views,
    };
    if let PairRule::ShortLong { short, long, .. } = &rule
        && short == long
    {
        return Err(table.error(format!("`short` and `long` are both `{short}`: a pair needs two columns")));
    }
    table.finish()?;
    Ok(rule)
}

/// Reads `lora`; `targets` are those of a recipe that names none.
pub(super) fn lora(table: &mut Table<'_>, targets: &[&str]) -> Result<Option<Lora>, RecipeError> {
    let Some(mut lora) = table.table("lora")? else { return Ok(None) };
    let rank = lora.get("rank", |value| positive(value).and(small(value)))?.unwrap_or(16);
    let read = Lora {
        rank,
        alpha: lora.get("alpha", |value| within(value, 1e-6, 1e6))?.unwrap_or(2.0 * f64::from(rank)),
        dropout: lora.get("dropout", |value| within(value, 0.0, 0.95))?.unwrap_or(0.05),
        targets: lora
            .get("targets", |value| one_or_more(value, text))?
            .unwrap_or_else(|| targets.iter().map(|target| (*target).to_owned()).collect()),
    };
    lora.finish()?;
    Ok(Some(read))
}

impl Stage {
    /// What a stage that tunes the LLM trains of it: `Some(None)` means all weights, `None` that it does not tune it.
    fn tunes(&self) -> Option<Option<&Lora>> {
        match self {
            Stage::Mntp(stage) => Some(stage.lora.as_ref()),
            Stage::Contrast(stage) => Some(stage.lora.as_ref()),
            Stage::Embed(_) | Stage::Distill(_) | Stage::Clip(_) | Stage::Eval(_) | Stage::Export => None,
        }
    }
}

impl Recipe {
    /// The LLM as stage number `stage` finds it: the recipe's, with what the stages before it made of it. Absent when the
    /// recipe names none.
    pub fn llm_before(&self, stage: usize) -> Option<TextModel> {
        let mut llm = self.model.text.clone()?;
        for stage in self.stages.iter().take(stage) {
            match stage.tunes() {
                None => {}
                Some(Some(_)) => llm.adapters.push(paths::tuned_adapter(&self.output, stage.kind())),
                Some(None) => {
                    let folder = paths::tuned_model(&self.output, stage.kind());
                    llm = TextModel { folder, init: Init::Pretrained, adapters: Vec::new(), ..llm };
                }
            }
        }
        Some(llm)
    }

    /// The LLM that makes the text vectors: as `embed` finds it, or as all stages leave it when there is no `embed`.
    pub fn encoder(&self) -> Option<TextModel> {
        let embed = self.stages.iter().position(|stage| matches!(stage, Stage::Embed(_)));
        self.llm_before(embed.unwrap_or(self.stages.len()))
    }
}
