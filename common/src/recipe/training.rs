//! What all stages that train have in common.

use super::{Recipe, Stage, objective::is_default};
use crate::sampler::{Policy, Tail};
use serde::{Deserialize, Serialize};

/// Data, batches, length and optimizer of a stage that trains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Data sets that are mixed.
    pub data: Vec<String>,
    /// How they are mixed.
    #[serde(default)]
    pub mix: Mix,
    /// What happens to samples that do not fill a global batch.
    #[serde(default)]
    pub tail: Tail,
    /// Samples per step over all ranks: pairs, or blocks of tokens. With a contrastive loss, the set of negatives.
    pub global_batch: u64,
    /// Samples per forward and backward pass, cut on the global batch's slot numbers.
    pub chunk: u64,
    /// How long to train.
    pub length: Length,
    /// The number format of the forward and backward passes.
    pub precision: Precision,
    /// AdamW's settings.
    pub optimizer: Optimizer,
    /// The learning rate over time.
    pub schedule: Schedule,
    /// When to write checkpoints.
    pub checkpoint: CheckpointPolicy,
    /// Whether the backward pass runs each block of the model again instead of keeping what it computed.
    #[serde(default)]
    pub activation_checkpointing: bool,
    /// Steps whose sections are written to a trace, after the first few; 0 means none.
    #[serde(default)]
    pub profile_steps: u64,
    /// How many steps in a row may have a loss or a gradient norm that is not finite: their updates are left out. With 0 the
    /// first one ends the job.
    #[serde(default, skip_serializing_if = "is_default")]
    pub skip_nonfinite: u64,
}

/// How data sets are mixed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mix {
    /// How a global batch is composed.
    pub policy: Policy,
    /// One weight a data set, in the order of the stage's `data`: of batches with `one-source`, of samples with `mixed`.
    /// Absent means in proportion to the sizes, so that each sample comes once an epoch.
    pub weights: Option<Vec<u32>>,
}

/// How long to train.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Length {
    /// Times through the data; `tail` says what happens to an incomplete global batch at an epoch's end. With weights, an
    /// epoch is as many samples as the data sets have together.
    Epochs(u64),
    /// Optimizer steps.
    Steps(u64),
}

/// The number format of compute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    Fp32,
    /// bfloat16 compute; what is trained has fp32 master weights.
    Bf16,
}

/// AdamW.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Optimizer {
    /// The peak learning rate.
    pub learning_rate: f64,
    /// Decay rates of the two moments.
    pub betas: (f64, f64),
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay; not on biases, norms and the logit scale.
    pub weight_decay: f64,
    /// The largest gradient norm; absent means that gradients are not clipped.
    pub clip_norm: Option<f64>,
    /// The factor per layer, from the head down, on the vision tower's learning rate; 1 = none.
    pub layer_decay: f64,
    /// Whether each rank keeps the moments of its share alone and updates it for all (ZeRO, first stage).
    #[serde(default)]
    pub sharded: bool,
}

/// Linear warm-up, then a fall to zero at the end: a function of the step alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// How it falls.
    #[serde(default)]
    pub decay: Decay,
}

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// Half a cosine, as open_clip's `cosine_lr`: the way of stage 2.
    #[default]
    Cosine,
    /// A line, as transformers' `get_linear_schedule_with_warmup`, in which the first step of a warm-up has a rate of 0: the
    /// way of stage 1.
    Linear,
    /// Not at all.
    Constant,
}

/// When checkpoints are written, and how many are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointPolicy {
    /// Steps between two; the last step always writes one.
    pub every_steps: u64,
    /// How many verified ones to keep, at least 2.
    pub keep: usize,
}

impl Stage {
    /// The stage's training; absent when it trains nothing.
    pub fn training(&self) -> Option<&Training> {
        match self {
            Stage::Mntp(stage) => Some(&stage.training),
            Stage::Contrast(stage) => Some(&stage.training),
            Stage::Distill(stage) => Some(&stage.training),
            Stage::Clip(stage) => Some(&stage.training),
            Stage::Embed(_) | Stage::Eval(_) | Stage::Export => None,
        }
    }

    /// As [`Stage::training`], to be changed.
    pub fn training_mut(&mut self) -> Option<&mut Training> {
        match self {
            Stage::Mntp(stage) => Some(&mut stage.training),
            Stage::Contrast(stage) => Some(&mut stage.training),
            Stage::Distill(stage) => Some(&mut stage.training),
            Stage::Clip(stage) => Some(&mut stage.training),
            Stage::Embed(_) | Stage::Eval(_) | Stage::Export => None,
        }
    }
}

impl Recipe {
    /// The training of the stage of this kind.
    pub fn training(&self, kind: &str) -> Option<&Training> {
        self.stages.iter().find(|stage| stage.kind() == kind)?.training()
    }
}
