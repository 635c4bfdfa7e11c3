//! Low-rank updates of the vision tower by themselves, as a PEFT folder: the weights beside it have them merged.

use super::{ExportError, Trained, error::io, timm_names};
use crate::model::{
    lora::{LoraConfig, write_folder},
    vision::VisionConfig,
};
use std::{fs::File, path::Path};

/// Where they are in an export.
pub(super) const FOLDER: &str = "vision_lora";

/// Writes them, under the names that the tower has in transformers, or in timm where transformers has none; nothing when the tower was
/// trained without. Returns whether there were any.
///
/// # Errors
/// When the checkpoint lacks one, or the disk refuses.
pub(super) fn write(export: &Path, config: &VisionConfig, trained: &Trained) -> Result<bool, ExportError> {
    let updates = trained.updates()?;
    let Some(how) = trained.recipe.clip().and_then(|clip| clip.lora.as_ref()).filter(|_| !updates.is_empty()) else {
        return Ok(false);
    };
    let theirs = |name: String| match config {
        VisionConfig::Eva02(_) => timm_names::eva02_alone(&name),
        VisionConfig::Clip(_) | VisionConfig::Siglip(_) => name,
    };
    let tensors: Vec<_> = updates.into_iter().map(|(name, tensor)| (theirs(name), tensor)).collect();
    let module =
        |name: &String| name.rsplit_once(".lora_").map_or_else(|| name.clone(), |(module, _)| module.to_owned());
    let mut target_modules: Vec<String> = tensors.iter().map(|(name, _)| module(name)).collect();
    target_modules.sort_unstable();
    target_modules.dedup();
    let settings = LoraConfig {
        rank: i64::from(how.rank),
        alpha: how.alpha,
        dropout: how.dropout,
        // Whole paths: other layers may end alike.
        target_modules,
        rank_stabilised: false,
    };
    let folder = export.join(FOLDER);
    for file in write_folder(&folder, &settings, tensors, &trained.vision()?.folder.display().to_string())? {
        File::open(&file).and_then(|file| file.sync_all()).map_err(io("sync", &file))?;
    }
    Ok(true)
}
