//! Reads a recipe from a file.

use super::error::CliError;
use common::recipe::{Evaluation, Recipe, RecipeError, Source, parse, parse_evaluation};
use std::path::{Path, PathBuf};

/// A recipe file and what to change in it.
#[derive(Debug, clap::Args)]
pub(super) struct RecipeArgs {
    /// The recipe, a TOML file
    #[arg(value_name = "RECIPE")]
    pub file: PathBuf,
    /// Change a key of the recipe, such as stage.clip.global_batch=512; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Write a trace of N steps of `clip`, by section, to OUTPUT/clip/trace-rank-*.json (ui.perfetto.dev shows it)
    #[arg(long, value_name = "N")]
    pub profile: Option<u64>,
}

/// Reads and validates it.
pub(super) fn load(args: &RecipeArgs) -> Result<Recipe, CliError> {
    read(args, parse)
}

/// As [`load`], as the evaluation of a model; its folders are relative to the working directory.
pub(super) fn load_evaluation(args: &RecipeArgs, model: &Path, llm: Option<&Path>) -> Result<Recipe, CliError> {
    let folder = |path: &Path, key: &str| {
        let missing = |error| CliError::usage(format!("{key} {} cannot be opened: {error}", path.display()));
        std::fs::canonicalize(path).map_err(missing)
    };
    let model = folder(model, "--model")?;
    let llm = llm.map(|llm| folder(llm, "--llm")).transpose()?;
    read(args, |source, overrides| {
        parse_evaluation(source, overrides, Evaluation { model: &model, llm: llm.as_deref() })
    })
}

fn read(
    args: &RecipeArgs,
    parse: impl FnOnce(Source<'_>, &[String]) -> Result<Recipe, RecipeError>,
) -> Result<Recipe, CliError> {
    let name = args.file.display().to_string();
    let text = std::fs::read_to_string(&args.file)
        .map_err(|error| CliError::usage(format!("{name} cannot be read: {error}")))?;
    let working_directory =
        std::env::current_dir().map_err(|error| CliError::new(1, format!("the working directory is gone: {error}")))?;
    let folder = working_directory.join(args.file.parent().unwrap_or(Path::new(".")));
    let source = Source { text: &text, file: &name, folder: &folder, working_directory: &working_directory };
    let profile = args.profile.map(|steps| format!("stage.clip.profile_steps={steps}"));
    let overrides: Vec<String> = args.overrides.iter().cloned().chain(profile).collect();
    parse(source, &overrides).map_err(CliError::usage)
}
