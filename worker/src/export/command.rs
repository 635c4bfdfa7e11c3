//! `llm2clip export`.

use super::{Exported, Trained, export};
use crate::{
    data::arguments::Format,
    storage::{Limits, Storage},
};
use anyhow::Context as _;
use common::recipe::{Recipe, Source, is_url, parse};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// What to export, and to where.
#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// A job, its output folder, the place of its checkpoints, or one of them such as OUTPUT/clip/step-000001200; of a job the newest
    #[arg(value_name = "JOB_OR_CHECKPOINT")]
    pub from: PathBuf,
    /// The folder to write; an export that is there is replaced, anything else is not
    #[arg(long, value_name = "FOLDER")]
    pub to: PathBuf,
    /// The job's recipe, where the job has not left it in OUTPUT/clip/recipe.json
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// A key of that recipe that the job had changed, such as stage.clip.global_batch=512; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "recipe")]
    pub overrides: Vec<String>,
    /// How to print: lines for people, or one JSON document
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    pub output: Format,
}

/// Exports, and says what was written.
pub fn main(args: &ExportArgs) -> anyhow::Result<()> {
    let recipe = args.recipe.as_deref().map(|path| read(path, &args.overrides)).transpose()?;
    anyhow::ensure!(
        is_url(&args.from) || args.from.exists(),
        "{} is neither a job that this machine knows nor a folder",
        args.from.display()
    );
    let storage = Arc::new(Storage::from_environment(Limits::default()));
    let trained = Trained::open(&storage, &args.from, recipe)?;
    let exported = export(&trained, &args.to)?;
    match args.output {
        Format::Text => println!("{}", text(&exported, &args.to)),
        Format::Json => println!("{:#}", json(&exported, &args.to)),
    }
    Ok(())
}

fn read(path: &Path, overrides: &[String]) -> anyhow::Result<Recipe> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("could not read the recipe {}", path.display()))?;
    let working_directory = std::env::current_dir().context("there is no working directory")?;
    let absolute = working_directory.join(path);
    let folder = absolute.parent().unwrap_or(&working_directory);
    let file = path.display().to_string();
    let source = Source { text: &text, file: &file, folder, working_directory: &working_directory };
    Ok(parse(source, overrides)?)
}

fn text(exported: &Exported, to: &Path) -> String {
    let (description, to) = (&exported.description, to.display());
    let what = if exported.unchanged { "was there already, made of the same things" } else { "written" };
    let open_clip = if exported.open_clip {
        format!("open_clip: local-dir:{to}/open_clip (the vision tower)")
    } else {
        "open_clip: it knows no tower of these sizes, so there is no open_clip folder".to_owned()
    };
    format!(
        "{to}: {what}\n  job {}, step {}, {} tower, shared width {}\n  {open_clip}\n\
         next: llm2clip encode --model {to} --images 'FOLDER/*.jpg' --texts FILE --out features.safetensors",
        description.checkpoint.job,
        description.checkpoint.step,
        description.image.architecture,
        description.shared_width,
    )
}

fn json(exported: &Exported, to: &Path) -> serde_json::Value {
    serde_json::json!({
        "schema": 1, "export": to, "unchanged": exported.unchanged, "open_clip": exported.open_clip,
        "description": exported.description,
    })
}
