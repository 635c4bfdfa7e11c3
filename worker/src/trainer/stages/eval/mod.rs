//! Stage `eval`: retrieval both ways and zero-shot classification, sharded over ranks, exact.
//!
//! Images and texts: every caption column by itself; a column of several captions (`.caption[*]`) by the protocol that
//! `rank` states. Captions and captions: `captions`, by the LLM's vectors alone. Images and classes: `classification`. What
//! was ranked is left in `OUTPUT/eval/DATA_SET.safetensors` (`image`, and `text/COLUMN`, rows of the shared width in fp32,
//! normalised; `image_of_text/COLUMN`) and `DATA_SET.classes.safetensors` (`image`, `label`, and `class/TEMPLATES`), and the
//! figures in `OUTPUT/eval/results.json` and `results.md`, so that anyone can compute the tables again.
//!
//! `periodic` does the same during a training.

mod captions;
mod classification;
mod examples;
mod features;
mod figures;
mod images;
mod paper;
mod periodic;
mod rank;
mod report;
mod sets;

pub use periodic::Periodic;

use super::{
    clip,
    towers::{TowerSettings, Towers},
};
use crate::trainer::{context::Context, context::Outcome, error::TrainerError};
use common::{
    ids::Step,
    recipe::{ClipStage, EvalStage, Recipe, Stage},
};
use images::Pass;
use report::Results;
use sets::Sets;

/// Runs the stage.
pub fn run(stage: &EvalStage, context: &mut Context<'_>) -> Result<Outcome, TrainerError> {
    let sets = Sets::open(&stage.data, context)?;
    let recipe = &context.plan.recipe;
    let benchmark = |name: &String| Some((name.clone(), recipe.data.get(name)?.benchmark?));
    let mut results = Results { benchmarks: stage.data.iter().filter_map(benchmark).collect(), ..Results::default() };
    if stage.needs_towers(recipe) {
        with_towers(stage, &sets, context, &mut results)?;
    }
    for set in &sets.ranked {
        let spec = &recipe.data[set.data.name()];
        for pair in stage.caption_retrieval.iter().filter(|pair| pair.is_of(spec)) {
            results.captions.extend(captions::rank_both(&set.data, &set.vectors, pair, context)?);
        }
    }
    if context.speaks() {
        results.write(&context.plan.output.join("eval"))?;
    }
    Ok(Outcome { summary: Some(results.summary()), stopped: false })
}

/// Ranks and classifies images, and saves what was compared.
fn with_towers(
    stage: &EvalStage,
    sets: &Sets,
    context: &Context<'_>,
    results: &mut Results,
) -> Result<(), TrainerError> {
    let (towers, step) = trained(sets.width(), stage, context)?;
    results.step = Some(step);
    results.model = context.trained.map(|trained| trained.folder().to_owned());
    let folder = context.plan.output.join("eval");
    let told = |_: &str, done: u64, of: u64| {
        context.report(context.progress(done, of));
    };
    let pass = Pass { chunk: stage.chunk, told: &told };
    for set in sets.ranked.iter().filter(|_| stage.image_retrieval) {
        let found = set.measure(&towers, pass, context)?;
        if let (true, Some(texts)) = (results.examples.is_empty(), found.features.texts.first()) {
            let owners = texts.side().image_n;
            results.examples = examples::of(&set.data, &texts.name, &found.features, owners, &found.best)?;
        }
        if context.speaks() {
            found.features.save(&folder.join(format!("{}.safetensors", set.data.name())), &set.data)?;
        }
        results.retrieval.extend(found.figures);
    }
    for set in &sets.classified {
        let found = set.measure(&towers, pass, context)?;
        if context.speaks() {
            set.save(&found, &folder)?;
        }
        results.zero_shot.extend(found.figures);
    }
    Ok(())
}

/// The towers of the model that the recipe names, or as its `clip` stage left them, and at which step.
fn trained(text_width: usize, stage: &EvalStage, context: &Context<'_>) -> Result<(Towers, Step), TrainerError> {
    let recipe = &context.plan.recipe;
    if let Some(trained) = context.trained {
        context.activity("loading the model");
        let settings = trained.tower_settings(text_width, stage.precision.unwrap_or_default())?;
        let mut towers = Towers::build(recipe, settings, context.device)?;
        trained.load(&mut towers)?;
        return Ok((towers, trained.step()));
    }
    let clip_stage = clip_stage(recipe)?;
    context.activity("loading the newest checkpoint");
    let settings = clip::tower_settings(clip_stage, text_width);
    let settings = TowerSettings { precision: stage.precision.unwrap_or(settings.precision), ..settings };
    let mut towers = Towers::build(recipe, settings, context.device)?;
    let shelf = context.shelf("clip")?;
    let loaded = shelf.newest()?.ok_or_else(|| {
        let root = recipe.checkpoint_root().join("clip");
        TrainerError::Plan(format!("there is no checkpoint below {}: run the `clip` stage first", root.display()))
    })?;
    towers.load(&loaded)?;
    Ok((towers, loaded.manifest.step))
}

fn clip_stage(recipe: &Recipe) -> Result<&ClipStage, TrainerError> {
    let clip = recipe.stages.iter().find_map(|stage| if let Stage::Clip(clip) = stage { Some(clip) } else { None });
    let clip = clip.map(|clip| &**clip);
    clip.ok_or_else(|| TrainerError::Plan("`eval` needs a `clip` stage before it, or `[model.trained]`".to_owned()))
}
