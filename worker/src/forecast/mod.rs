//! `llm2clip run|launch RECIPE --dry-run`: what a job would do and take, stage by stage, without doing it: samples, steps,
//! memory of a rank, bytes on the wire, storage, operations.
//!
//! `given` is what is known of data and models, here or by the user's word; `stage` does the arithmetic; `report` says it.

mod given;
mod memory;
mod published;
mod report;
mod stage;
mod traffic;

#[cfg(test)]
mod tests;

use crate::{
    data::arguments::Format,
    recipe_args::RecipeArgs,
    storage::{Limits, Storage},
};
use anyhow::Context as _;
use common::ids::WorldSize;
use given::{Given, Said};
use report::Report;
use std::sync::Arc;

/// What is asked.
#[derive(Debug, clap::Args)]
pub struct ForecastArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// With how many ranks
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    ranks: u32,
    #[command(flatten)]
    said: Said,
    /// How to print: lines for people, or one JSON document
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// Computes the forecast, and prints it.
pub fn main(args: &ForecastArgs) -> anyhow::Result<()> {
    let recipe = args.recipe.read()?;
    for (name, _) in args.said.samples.iter().chain(&args.said.tokens) {
        let known: Vec<&str> = recipe.data.keys().chain(recipe.text.keys()).map(String::as_str).collect();
        anyhow::ensure!(
            known.contains(&name.as_str()),
            "the recipe has no data set `{name}`; it has: {}",
            known.join(", ")
        );
    }
    let storage = Arc::new(Storage::from_environment(Limits::default()));
    let given = Given::find(&recipe, &storage, &args.said);
    let world = WorldSize(args.ranks);
    let numbered = recipe.stages.iter().enumerate();
    let stages = numbered.map(|(number, spec)| stage::forecast(&recipe, (number, spec), &given, world));
    let stages = stages.collect::<Result<Vec<_>, _>>()?;
    let report = Report::new(&recipe, world, &given, stages);
    match args.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&report).context("a forecast is JSON")?),
        Format::Text => print!("{}", report.text()),
    }
    Ok(())
}
