//! Manifests of format 1, whose data record knew one policy of the order. They can be read, so that their weights can be
//! used; their order was another one (version 1), so a stage cannot go on from them.

use super::{DataCursor, FORMAT, Part, cursor::SourceFingerprint};
use crate::{
    ids::{Generation, JobId, Step, WorldSize},
    sampler::{AUGMENTATION_VERSION, Policy, Segment, Shuffle, Tail},
};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    #[serde(rename = "format")]
    _format: u32,
    job: JobId,
    generation: Generation,
    step: Step,
    world: WorldSize,
    stage: String,
    recipe_fingerprint: String,
    data: Cursor,
    parts: Vec<Part>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cursor {
    position: u64,
    seed: u64,
    sources: Vec<Source>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    name: String,
    samples: u64,
    fingerprint: String,
}

impl From<Manifest> for super::Manifest {
    fn from(old: Manifest) -> Self {
        let source =
            |source: Source| SourceFingerprint::new(source.name, source.samples, Shuffle::Full, &source.fingerprint);
        let data = DataCursor {
            order: 1,
            augmentation: AUGMENTATION_VERSION,
            seed: old.data.seed,
            position: old.data.position,
            // A checkpoint was never written before the first step.
            global_batch: old.data.position.checked_div(old.step.0).unwrap_or(old.data.position),
            policy: Policy::OneSource,
            tail: Tail::Drop,
            sources: old.data.sources.into_iter().map(source).collect(),
            segments: vec![Segment::first(None)],
        };
        Self {
            format: FORMAT,
            job: old.job,
            generation: old.generation,
            step: old.step,
            world: old.world,
            stage: old.stage,
            recipe_fingerprint: old.recipe_fingerprint,
            data,
            parts: old.parts,
        }
    }
}
