//! `run --dry-run` and `launch --dry-run`: what the job would do and take. The trainer knows the models' sizes, so it says it.

use super::{
    Common,
    error::CliError,
    pass::{self, PassArgs},
    recipe::RecipeArgs,
};
use std::ffi::OsString;

/// What a forecast is told.
#[derive(Debug, clap::Args)]
pub(super) struct DryRunArgs {
    /// Run nothing: say steps, memory of a rank, bytes on the wire, storage and operations of every stage
    #[arg(long)]
    pub dry_run: bool,
    /// With --dry-run: how many samples a data set has that is not here, such as cc3m=2873538
    #[arg(long, value_name = "NAME=N", requires = "dry_run")]
    samples: Vec<OsString>,
    /// With --dry-run: how many tokens its texts have on average
    #[arg(long, value_name = "NAME=N", requires = "dry_run")]
    tokens: Vec<OsString>,
    /// With --dry-run: how wide text vectors are, where the recipe names no LLM
    #[arg(long, value_name = "N", requires = "dry_run")]
    text_width: Option<u32>,
}

/// Says what the recipe would do with so many ranks.
pub(super) fn forecast(args: &DryRunArgs, recipe: &RecipeArgs, ranks: u32, common: &Common) -> Result<u8, CliError> {
    let mut arguments: Vec<OsString> = vec![recipe.file.clone().into(), "--ranks".into(), ranks.to_string().into()];
    let mut give = |flag: &str, values: &[OsString]| {
        values.iter().for_each(|value| arguments.extend([flag.into(), value.clone()]));
    };
    give("--set", &recipe.overrides.iter().map(OsString::from).collect::<Vec<_>>());
    give("--samples", &args.samples);
    give("--tokens", &args.tokens);
    give("--text-width", &args.text_width.iter().map(|width| width.to_string().into()).collect::<Vec<_>>());
    pass::to_trainer("forecast", &PassArgs::of(arguments), common)
}
