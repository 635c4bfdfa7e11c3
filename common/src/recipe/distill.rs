//! The adapter's warm start: what CLIP's own text tower makes of captions is taught to it before any image is seen.

use super::{
    Init, Recipe, Stage, Training,
    error::RecipeError,
    raw::Table,
    read::{init, plain, positive, text},
};
use crate::manifest::paths;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// CLIP's text tower, frozen: the teacher of stage `distill`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeacherModel {
    /// `config.json` and weights of `CLIPTextModelWithProjection` or of a whole CLIP, and its `tokenizer.json`; absolute.
    pub folder: PathBuf,
    /// Where the weights come from.
    pub init: Init,
}

/// Settings of `distill`: "representation inheritance" by cross-architecture distillation (ProCLIP, arXiv 2510.18795, section 3.2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DistillStage {
    /// What every training has; a sample is a caption.
    #[serde(flatten)]
    pub training: Training,
    /// The number of rows that the loss's sums are scaled to; ProCLIP sums over the rows of one device. Absent means the global
    /// batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
}

/// Reads `[model.teacher]`; paths are relative to `folder`.
pub(super) fn teacher(mut table: Table<'_>, folder: &Path) -> Result<TeacherModel, RecipeError> {
    let path = plain(&folder.join(table.need("folder", text)?));
    let model = TeacherModel { folder: path, init: init(&mut table)? };
    table.finish()?;
    Ok(model)
}

/// Reads what a stage `distill` has beside its training.
pub(super) fn stage(table: &mut Table<'_>, training: Training) -> Result<DistillStage, RecipeError> {
    Ok(DistillStage { training, rows: table.get("rows", positive)? })
}

impl Recipe {
    /// The stage `distill`; absent when the recipe has none.
    pub fn distill(&self) -> Option<&DistillStage> {
        self.stages.iter().find_map(|stage| if let Stage::Distill(stage) = stage { Some(stage.as_ref()) } else { None })
    }

    /// Of these data sets those whose captions the teacher reads as well.
    pub fn taught<'a>(&'a self, data: &'a [String]) -> impl Iterator<Item = &'a String> {
        let wanted = self.distill().map_or(&[][..], |stage| &stage.training.data);
        data.iter().filter(move |name| wanted.contains(name))
    }

    /// The folder of the adapter with which stage number `stage` begins; absent when it begins by chance.
    pub fn adapter_before(&self, stage: usize) -> Option<PathBuf> {
        let before = self.stages.iter().take(stage).find(|stage| matches!(stage, Stage::Distill(_)))?;
        Some(paths::distilled_adapter(&self.output, before.kind()))
    }
}

/// Whether all is there that `distill` needs: a teacher, and the teacher's vectors, which `embed` makes.
pub(super) fn check(recipe: &Recipe) -> Result<(), String> {
    let Some(distill) = recipe.distill() else {
        return match recipe.model.teacher {
            Some(_) => Err("`[model.teacher]` is the teacher of a stage `distill`, and the recipe has none: add one before `clip`, \
                            or leave the teacher out"
                .to_owned()),
            None => Ok(()),
        };
    };
    let embed = recipe.stages.iter().find(|stage| matches!(stage, Stage::Embed(_)));
    let embedded = |name: &&String| embed.is_some_and(|embed| embed.data().contains(name));
    match distill.training.data.iter().find(|name| !embedded(name)) {
        Some(name) => Err(format!(
            "stage `distill` needs what the teacher makes of the captions of `{name}`, and no stage `embed` has `{name}` in its \
             `data`: add it there"
        )),
        None => Ok(()),
    }
}
