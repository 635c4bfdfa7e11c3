//! Stage `eval`: retrieval both ways, sharded over ranks, exact.
//!
//! Images and texts: every caption column by itself; a column of several captions (`.caption[*]`) by the protocol that
//! `rank` states. Captions and captions: `captions`, by the LLM's vectors alone. What was ranked is left in
//! `OUTPUT/eval/DATA_SET.safetensors` (`image`, and `text/COLUMN`, rows of the shared width in fp32, normalised;
//! `image_of_text/COLUMN`), and the figures in `OUTPUT/eval/results.json` and `results.md`, so that anyone can compute
//! the table again.

mod captions;
mod examples;
mod features;
mod figures;
mod paper;
mod rank;
mod report;

use super::{clip, text_vectors::TextVectors, towers::Towers};
use crate::{
    checkpoint,
    data::Dataset,
    trainer::{context::Context, context::Outcome, error::TrainerError},
    vectors::VectorStore,
};
use common::{
    ids::Step,
    recipe::{ClipStage, EvalStage, Stage},
};
use features::Features;
use figures::{Figures, Subject};
use report::Results;
use std::sync::Arc;

/// Runs the stage.
pub fn run(stage: &EvalStage, context: &mut Context<'_>) -> Result<Outcome, TrainerError> {
    let datasets = context.datasets(&stage.data)?;
    let sources = TextVectors::of(context, &stage.data)?;
    let (stores, width) = sources.open_all(&datasets)?;
    let recipe = &context.plan.recipe;
    let benchmark = |name: &String| Some((name.clone(), recipe.data.get(name)?.benchmark?));
    let mut results = Results { benchmarks: stage.data.iter().filter_map(benchmark).collect(), ..Results::default() };
    if stage.image_retrieval {
        let (towers, step) = trained(width, context)?;
        results.step = Some(step);
        for (dataset, vectors) in datasets.iter().zip(&stores) {
            images_and_texts(dataset, vectors, &towers, stage, context, &mut results)?;
        }
    }
    for (dataset, vectors) in datasets.iter().zip(&stores) {
        let spec = &recipe.data[dataset.name()];
        for pair in stage.caption_retrieval.iter().filter(|pair| pair.is_of(spec)) {
            results.captions.extend(captions::rank_both(dataset, vectors, pair, context)?);
        }
    }
    if context.speaks() {
        results.write(&context.plan.output.join("eval"))?;
    }
    Ok(Outcome { summary: Some(results.summary()), stopped: false })
}

/// The towers as the recipe's `clip` stage left them, and at which step.
fn trained(text_width: usize, context: &Context<'_>) -> Result<(Towers, Step), TrainerError> {
    let recipe = &context.plan.recipe;
    let clip_stage: &ClipStage = recipe
        .stages
        .iter()
        .find_map(|stage| if let Stage::Clip(clip) = stage { Some(clip) } else { None })
        .ok_or_else(|| TrainerError::Plan("`eval` needs a `clip` stage before it".to_owned()))?;
    context.activity("loading the newest checkpoint");
    let mut towers = Towers::build(recipe, clip::tower_settings(clip_stage, text_width), context.device)?;
    let loaded = checkpoint::newest(&context.plan.output, "clip")?.ok_or_else(|| {
        TrainerError::Plan(format!(
            "there is no checkpoint below {}: run the `clip` stage first",
            context.plan.output.join("clip").display()
        ))
    })?;
    towers.load(&loaded)?;
    let step = loaded.manifest.step;
    Ok((towers, step))
}

/// Ranks texts for images and images for texts, column by column, and saves what was ranked.
fn images_and_texts(
    dataset: &Arc<Dataset>,
    vectors: &VectorStore,
    towers: &Towers,
    stage: &EvalStage,
    context: &Context<'_>,
    results: &mut Results,
) -> Result<(), TrainerError> {
    let features = Features::compute(dataset, vectors, towers, stage.chunk, context)?;
    let pairs = features.samples.len() as u64;
    for texts in &features.texts {
        let (images, side) = (features.images(), texts.side());
        let subject = |direction: &str| Subject {
            data: dataset.name(),
            captions: &texts.name,
            direction: direction.to_owned(),
            pairs,
            left_out: dataset.len() - pairs,
        };
        let (found, _) = Figures::compute(subject("image to text"), images, side, context)?;
        results.retrieval.push(found);
        let (found, best) = Figures::compute(subject("text to image"), side, images, context)?;
        results.retrieval.push(found);
        if results.examples.is_empty() {
            results.examples = examples::of(dataset, &texts.name, &features, side.image_n, &best)?;
        }
    }
    if context.speaks() {
        features.save(&context.plan.output.join("eval").join(format!("{}.safetensors", dataset.name())), dataset)?;
    }
    Ok(())
}
