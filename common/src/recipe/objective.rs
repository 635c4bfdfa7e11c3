//! What the stage `clip` minimises.

use super::{
    error::RecipeError,
    raw::Table,
    read::{choice, positive, within},
};
use serde::{Deserialize, Serialize};

/// The loss of the stage `clip`. What has its default is not written down: a recipe's fingerprint is what it was before there
/// was a choice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    /// Over the pairs of a global batch.
    #[serde(default, skip_serializing_if = "is_default")]
    pub loss: PairLoss,
    /// ε of the softmax loss: the share of a row's target that all of its columns have evenly (torch's `label_smoothing`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub label_smoothing: f64,
    /// The logit bias's start; of the sigmoid loss, which always has one, and of no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logit_bias_init: Option<f64>,
    /// What keeps the vision tower near its own average; absent for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub self_distillation: Option<SelfDistillation>,
}

/// The vision tower learns from its own average, `ema` of the stage, as well (ProCLIP, arXiv 2510.18795).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SelfDistillation {
    /// The factor on what is added to the loss; 4e-4 in ProCLIP.
    pub weight: f64,
    /// The number of rows that its sums are scaled to; ProCLIP sums over the rows of one device. Absent means the global batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
}

/// A loss over pairs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairLoss {
    /// CLIP's: the cross-entropy of each row and each column.
    #[default]
    Softmax,
    /// SigLIP's: each two by themselves, with a trained bias.
    Sigmoid,
}

impl PairLoss {
    /// Where the logit scale's logarithm begins: ln(1/0.07) in CLIP, ln 10 in SigLIP (Zhai et al. 2023, algorithm 1).
    pub(super) fn log_scale_init(self) -> f64 {
        match self {
            Self::Softmax => (1.0f64 / 0.07).ln(),
            Self::Sigmoid => 10f64.ln(),
        }
    }
}

/// SigLIP's start of the logit bias.
const LOGIT_BIAS: f64 = -10.0;

/// Whether a value need not be written down.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Reads the stage's keys.
pub(super) fn read(table: &mut Table<'_>) -> Result<Objective, RecipeError> {
    let losses = [("softmax", PairLoss::Softmax), ("sigmoid", PairLoss::Sigmoid)];
    let loss = table.get("loss", |value| choice(value, &losses))?.unwrap_or_default();
    let label_smoothing = table.get("label_smoothing", |value| within(value, 0.0, 0.999))?.unwrap_or(0.0);
    let bias = table.get("logit_bias_init", |value| within(value, -100.0, 100.0))?;
    let logit_bias_init = match loss {
        PairLoss::Sigmoid if label_smoothing > 0.0 => {
            return Err(table.error(
                "`label_smoothing` is of the softmax loss, whose targets add up to 1; with `loss` = \"sigmoid\" leave it out",
            ));
        }
        PairLoss::Sigmoid => Some(bias.unwrap_or(LOGIT_BIAS)),
        PairLoss::Softmax if bias.is_some() => {
            return Err(table.error(
                "`logit_bias_init` is of the sigmoid loss: a bias changes nothing in a softmax; set `loss` = \"sigmoid\", or \
                 leave it out",
            ));
        }
        PairLoss::Softmax => None,
    };
    let self_distillation = table.table("self_distillation")?.map(self_distillation).transpose()?;
    Ok(Objective { loss, label_smoothing, logit_bias_init, self_distillation })
}

fn self_distillation(mut table: Table<'_>) -> Result<SelfDistillation, RecipeError> {
    let read = SelfDistillation {
        weight: table.get("weight", |value| within(value, 0.0, 1e3))?.unwrap_or(4e-4),
        rows: table.get("rows", positive)?,
    };
    table.finish()?;
    Ok(read)
}
