//! `recipe.json`: the recipe that a stage was trained with, as it was validated, in the stage's folder and beside its checkpoints.

use super::{ExportError, error::io, files};
use crate::storage::{Location, Storage, StorageError};
use common::recipe::Recipe;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file's name.
pub const FILE: &str = "recipe.json";

/// The document, version 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeFile {
    /// The version of this document: 1.
    pub schema: u32,
    /// The recipe's fingerprint, which checkpoints' manifests have, too.
    pub fingerprint: String,
    /// The recipe.
    pub recipe: Recipe,
}

pub(super) fn document(recipe: &Recipe) -> RecipeFile {
    RecipeFile { schema: 1, fingerprint: recipe.fingerprint(), recipe: recipe.clone() }
}

/// Leaves the recipe in a stage's folder or at its URL, in one piece.
///
/// # Errors
/// When storage does not take it.
pub fn write(storage: &Storage, stage: &Path, recipe: &Recipe) -> Result<(), ExportError> {
    let path = stage.join(FILE);
    if let Location::Object(url) = Location::from_path(&path)? {
        let text = serde_json::to_vec_pretty(&document(recipe)).expect("a recipe is JSON");
        return Ok(storage.put(&Location::Object(url), text)?);
    }
    std::fs::create_dir_all(stage).map_err(io("create", stage))?;
    let temporary = stage.join("recipe.json.tmp");
    files::write_json(&temporary, &document(recipe))?;
    std::fs::rename(&temporary, &path).map_err(io("rename to", &path))
}

/// The recipe in a stage's folder or at its URL.
///
/// # Errors
/// When there is none, or it is of another version.
pub fn read(storage: &Storage, stage: &Path) -> Result<Recipe, ExportError> {
    let path = stage.join(FILE);
    let read = match Location::from_path(&path)? {
        Location::Object(url) => storage.get(&url).map(Some).or_else(|error| match error {
            StorageError::NotFound { .. } => Ok(None),
            error => Err(error),
        })?,
        Location::Local(path) => match std::fs::read(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(io("read", path)(error)),
        },
    };
    let Some(text) = read else { return Err(ExportError::NoRecipe { path }) };
    match serde_json::from_slice::<RecipeFile>(&text) {
        Ok(file) if file.schema == 1 => Ok(file.recipe),
        Ok(file) => Err(ExportError::Document { path, reason: format!("its schema is {}, not 1", file.schema) }),
        Err(error) => Err(ExportError::Document { path, reason: error.to_string() }),
    }
}
