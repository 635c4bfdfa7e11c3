//! `recipe.json`: the recipe that a stage was trained with, as it was validated, beside the stage's checkpoints.

use super::{ExportError, error::io, files};
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

/// Leaves the recipe in a stage's folder, in one piece.
///
/// # Errors
/// When the folder cannot be written.
pub fn write(folder: &Path, recipe: &Recipe) -> Result<(), ExportError> {
    std::fs::create_dir_all(folder).map_err(io("create", folder))?;
    let (path, temporary) = (folder.join(FILE), folder.join("recipe.json.tmp"));
    files::write_json(&temporary, &document(recipe))?;
    std::fs::rename(&temporary, &path).map_err(io("rename to", &path))
}

/// The recipe of a stage's folder.
///
/// # Errors
/// When there is none, or it is of another version.
pub fn read(folder: &Path) -> Result<Recipe, ExportError> {
    let path = folder.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(ExportError::NoRecipe { path }),
        Err(error) => return Err(io("read", path)(error)),
    };
    match serde_json::from_str::<RecipeFile>(&text) {
        Ok(file) if file.schema == 1 => Ok(file.recipe),
        Ok(file) => Err(ExportError::Document { path, reason: format!("its schema is {}, not 1", file.schema) }),
        Err(error) => Err(ExportError::Document { path, reason: error.to_string() }),
    }
}
