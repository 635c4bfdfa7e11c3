//! The immutable thing that a trainer receives: it leaves no choice.

use crate::{
    ids::{Generation, JobId, Rank, Step, WorldSize},
    manifest::Weights,
    recipe::Recipe,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What one rank of one generation has to do: one stage of one recipe, from one point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainPlan {
    /// The version of this document: 1.
    pub schema: u32,
    /// The job.
    pub job: JobId,
    /// The membership this plan belongs to.
    pub generation: Generation,
    /// Who the receiver is.
    pub rank: Rank,
    /// The address of every rank's peer listener, by rank; its length is the world size.
    pub peers: Vec<String>,
    /// Which of the recipe's stages to run, from 0.
    pub stage: usize,
    /// Where to go on; absent means from the beginning of the stage.
    pub resume: Option<ResumePoint>,
    /// Whether a rank holds the state of this stage in its memory: then all take the newest, and `resume` only if nobody does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_memory: bool,
    /// Whether the membership before is broken: a rank that still works in it breaks off at once. Else it goes on to the end
    /// of its step, which all ranks agree on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_once: bool,
    /// The whole recipe as it was validated when the job was submitted.
    pub recipe: Recipe,
    /// The job's folder on shared storage; absolute.
    pub output: PathBuf,
}

impl TrainPlan {
    /// How many ranks there are.
    pub fn world(&self) -> WorldSize {
        WorldSize(u32::try_from(self.peers.len()).expect("a generation has fewer than 2^32 ranks"))
    }
}

/// A committed checkpoint to go on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResumePoint {
    /// The step that the checkpoint holds.
    pub step: Step,
    /// Where it lies: a folder, absolute, or an URL.
    pub folder: PathBuf,
    /// Whether a user changed the weights of the mix since the job was submitted.
    #[serde(default)]
    pub weights: Weights,
    /// Whether a user named this one: if it is damaged, that is an error. Else the one before it is taken, loudly.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chosen: bool,
}
