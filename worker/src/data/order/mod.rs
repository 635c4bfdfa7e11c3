//! `llm2clip data order`: which samples a step of training has, and when a sample comes up. The order is the recipe's own
//! (`common/src/recipe/order.rs`), the one that training asks for; nothing is computed and no image is read.

mod batch;
mod history;
mod sample;

use super::{DataError, Dataset, arguments::Format, progress::Line};
use crate::storage::{Limits, Storage};
use crate::{
    checkpoint::CheckpointError,
    recipe_args::{RecipeArgs, RecipeArgsError},
};
use anyhow::Context as _;
use batch::Listing;
use common::{
    ids::WorldSize,
    manifest::ResumeError,
    recipe::{Recipe, Stage, Training},
    sampler::{Order, OrderError},
};
use history::Checkpoints;
use sample::Found;
use serde::Serialize;
use std::{path::PathBuf, sync::Arc};

/// What is asked.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("asked").required(true).args(["step", "position", "sample"])))]
pub struct OrderArgs {
    /// Of which recipe
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Which stage
    #[arg(long, default_value = "clip")]
    pub stage: String,
    /// List the global batch of step N, counted from 0: it is trained on when N steps are done, and the log calls it N + 1
    #[arg(long, value_name = "N")]
    pub step: Option<u64>,
    /// List the global batch that holds the P-th sample of the stage, counted from 0, as checkpoints count
    #[arg(long, value_name = "P")]
    pub position: Option<u64>,
    /// Say when a sample comes up: DATASET/KEY, DATASET/SHARD/KEY, or DATASET/#NUMBER, counted from 0
    #[arg(long, value_name = "DATASET/SAMPLE")]
    pub sample: Option<String>,
    /// Say which of W ranks has a slot
    #[arg(long, value_name = "W", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub workers: u32,
    /// Take what this checkpoint says of steps that are done: weights of the mix that changed on the way. Without it the newest
    /// of the recipe's output is asked, if there is one
    #[arg(long, value_name = "FOLDER")]
    pub checkpoint: Option<PathBuf>,
    /// Print every line, not the first and last of many
    #[arg(long)]
    pub all: bool,
    /// How to print: lines for people, or one JSON document
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    pub output: Format,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum OrderQuestionError {
    #[error(transparent)]
    Recipe(#[from] RecipeArgsError),
    #[error("the recipe has no stage `{wanted}`; it has: {stages}")]
    NoStage { wanted: String, stages: String },
    #[error("`data order` lists the samples of `clip`, not those of stage `{0}`")]
    NoOrder(String),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Order(#[from] OrderError),
    #[error("--checkpoint: {source}")]
    Checkpoint { source: CheckpointError },
    #[error("the order of a job with the checkpoint {}: {source}", folder.display())]
    History { folder: PathBuf, source: ResumeError },
    #[error("step {step} is beyond the end: the stage has {steps} steps, 0 to {}, and {samples} samples in all", steps.saturating_sub(1))]
    BeyondTheEnd { step: u64, steps: u64, samples: u64 },
    #[error("a global batch of {global_batch} cannot be shared by {workers} workers")]
    TooManyWorkers { global_batch: u64, workers: u32 },
    #[error("`{0}` names no sample: write DATASET/KEY, DATASET/SHARD/KEY or DATASET/#NUMBER")]
    NotASample(String),
    #[error("the stage has no data set `{wanted}`; it has: {known}")]
    NoDataSet { wanted: String, known: String },
    #[error("data set `{name}` has {samples} usable samples, 0 to {}, and no number {number}", samples - 1)]
    NoNumber { name: String, number: u64, samples: u64 },
    #[error("none of the {samples} usable samples of data set `{name}` has the key `{key}`{}", left_out(*skipped))]
    NoKey { name: String, key: String, samples: u64, skipped: u64 },
}

fn left_out(skipped: u64) -> String {
    match skipped {
        0 => String::new(),
        _ => format!("; {skipped} more are left out as broken, see `llm2clip data inspect`"),
    }
}

/// A stage, open: what training has before its first step, without models.
struct Opened {
    seed: u64,
    stage: Training,
    datasets: Vec<Dataset>,
    order: Order,
    /// How many steps the stage has.
    steps: u64,
    workers: WorldSize,
}

/// Answers, and prints the answer.
pub fn main(args: &OrderArgs) -> anyhow::Result<()> {
    let opened = Opened::open(args)?;
    match (&args.sample, args.step, args.position) {
        (Some(sample), _, _) => {
            let found = Found::find(&opened, sample)?;
            print(args, &found, Found::text)
        }
        (None, step, position) => {
            let position = position.unwrap_or_default();
            let slot = step.is_none().then_some(position % opened.stage.global_batch);
            let step = step.unwrap_or(position / opened.stage.global_batch);
            print(args, &Listing::of(&opened, step, slot)?, Listing::text)
        }
    }
}

fn print<T: Serialize>(args: &OrderArgs, answer: &T, text: fn(&T, bool) -> String) -> anyhow::Result<()> {
    match args.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(answer).context("an answer is JSON")?),
        Format::Text => println!("{}", text(answer, args.all)),
    }
    Ok(())
}

impl Opened {
    fn open(args: &OrderArgs) -> Result<Self, OrderQuestionError> {
        let recipe = args.recipe.read()?;
        let stage = stage(&recipe, &args.stage)?;
        let global_batch = stage.global_batch;
        if u64::from(args.workers) > global_batch {
            return Err(OrderQuestionError::TooManyWorkers { global_batch, workers: args.workers });
        }
        let line = Line::new("indexing", "shards");
        let storage = Arc::new(Storage::from_environment(Limits::default()));
        let open = |name: &String| {
            let spec = recipe.data.get(name).expect("a valid recipe has the data sets that its stages name");
            Dataset::open_with(&storage, name, spec, &|progress| line.indexed(progress))
        };
        let datasets = stage.data.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let samples: Vec<u64> = datasets.iter().map(Dataset::len).collect();
        let order = recipe.order(&stage, &samples)?;
        let named = args.checkpoint.as_deref();
        let checkpoints = Checkpoints { storage: &storage, root: recipe.checkpoint_root(), stage: &args.stage, named };
        let order = history::of_job(&checkpoints, &datasets, order)?;
        let steps = stage.length.steps(&order);
        Ok(Self { seed: recipe.seed, stage, datasets, order, steps, workers: WorldSize(args.workers) })
    }
}

fn stage(recipe: &Recipe, wanted: &str) -> Result<Training, OrderQuestionError> {
    match recipe.stages.iter().find(|stage| stage.kind() == wanted) {
        Some(Stage::Clip(clip)) => Ok(clip.training.clone()),
        Some(_) => Err(OrderQuestionError::NoOrder(wanted.to_owned())),
        None => {
            let stages: Vec<&str> = recipe.stages.iter().map(Stage::kind).collect();
            Err(OrderQuestionError::NoStage { wanted: wanted.to_owned(), stages: stages.join(", ") })
        }
    }
}

/// Columns of texts side by side, each as wide as its widest text.
fn columns(lines: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|text| text.chars().count()).max();
    let widths: Vec<usize> = (0..).map_while(width).collect();
    let padded = |line: &Vec<String>| {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(text, width)| format!("{text:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    lines.iter().map(padded).collect()
}

#[cfg(test)]
mod tests;
