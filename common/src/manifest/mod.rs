//! Checkpoint manifests: what a checkpoint holds. A checkpoint exists if and only if its manifest validates.
//!
//! This module sees strings, sizes and digests, never a tensor or a file.

mod cursor;
mod document;
mod format_1;
mod listed;
pub mod paths;
pub mod retention;
mod validate;

pub use cursor::{CursorDifference, DataCursor, ResumeError, SourceFingerprint, Weights};
pub use listed::Listed;
pub use validate::ManifestError;

use crate::ids::{Generation, JobId, Rank, Step, WorldSize};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of the manifest that this program writes. It reads versions 1 and 2 too.
pub const FORMAT: u32 = 3;

/// What `manifest.json` says. Written last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of this document: [`FORMAT`].
    pub format: u32,
    /// The job.
    pub job: JobId,
    /// The membership that wrote it.
    pub generation: Generation,
    /// The committed step it holds.
    pub step: Step,
    /// How many ranks wrote it.
    pub world: WorldSize,
    /// `clip`, …
    pub stage: String,
    /// BLAKE3 of the validated recipe's JSON, without its output folder and faults.
    pub recipe_fingerprint: String,
    /// Where the data stands.
    pub data: DataCursor,
    /// One part a rank.
    pub parts: Vec<Part>,
}

/// One rank's share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Who wrote it.
    pub rank: Rank,
    /// The file's name in the checkpoint's folder.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 of its bytes, in hexadecimal.
    pub blake3: String,
    /// Its tensors by name.
    pub tensors: BTreeMap<String, TensorEntry>,
}

/// Where a tensor (or a stretch of its elements) lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorEntry {
    /// `F32`, `BF16`, … as safetensors names it.
    pub dtype: String,
    /// The whole tensor's shape.
    pub shape: Vec<u64>,
    /// Where its bytes begin in the file.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// What a rank reports of a checkpoint: its part, and where the data stands; all ranks say the same of the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// The rank's file.
    pub part: Part,
    /// Where the data stands.
    pub data: DataCursor,
}
