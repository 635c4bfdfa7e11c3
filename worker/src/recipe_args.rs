//! A recipe as the trainer's verbs are given it.

use common::recipe::{Recipe, RecipeError, Source, parse};
use std::path::{Path, PathBuf};

/// A recipe file and what to change in it.
#[derive(Debug, clap::Args)]
pub struct RecipeArgs {
    /// The recipe, a TOML file
    #[arg(value_name = "RECIPE")]
    pub recipe: PathBuf,
    /// Change a key of the recipe, such as stage.clip.global_batch=512; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// Why there is no recipe.
#[derive(Debug, thiserror::Error)]
pub enum RecipeArgsError {
    /// It cannot be read.
    #[error("could not read the recipe {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not valid.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
}

impl RecipeArgs {
    /// Reads and validates it.
    ///
    /// # Errors
    /// When it cannot be read, or is not valid.
    pub fn read(&self) -> Result<Recipe, RecipeArgsError> {
        let path = &self.recipe;
        let unread = |source| RecipeArgsError::Read { path: path.clone(), source };
        let text = std::fs::read_to_string(path).map_err(unread)?;
        let working_directory = std::env::current_dir().map_err(unread)?;
        let folder = working_directory.join(path.parent().unwrap_or(Path::new(".")));
        let file = path.display().to_string();
        let source = Source { text: &text, file: &file, folder: &folder, working_directory: &working_directory };
        Ok(parse(source, &self.overrides)?)
    }
}
