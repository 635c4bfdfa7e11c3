//! What must hold between the parts of a recipe.

use super::{Length, Recipe, Stage, error::nearest};
use crate::sampler::Shuffle;

/// How many global batches a window of a block shuffle has at least.
const LEAST_WINDOW: u64 = 8;

/// The first thing that does not fit.
pub(super) fn check(recipe: &Recipe) -> Result<(), String> {
    if recipe.stages.is_empty() {
        return Err("a recipe has at least one `[[stage]]`".to_owned());
    }
    for (number, stage) in recipe.stages.iter().enumerate() {
        if recipe.stages[..number].iter().any(|before| before.kind() == stage.kind()) {
            return Err(format!("there are two stages of kind `{}`: a recipe has one of each", stage.kind()));
        }
        let data = match stage {
            Stage::Embed(embed) => &embed.data,
            Stage::Clip(clip) => &clip.data,
            Stage::Eval(eval) => &eval.data,
        };
        for name in data {
            known_data(recipe, stage.kind(), name)?;
        }
        models(recipe, stage)?;
        windows(recipe, stage)?;
        if let Stage::Eval(eval) = stage {
            super::eval::check(recipe, eval)?;
        }
        if let Stage::Clip(clip) = stage
            && let Length::Steps(steps) = clip.length
            && clip.schedule.warmup_steps >= steps
        {
            return Err(format!("`warmup_steps` is {}, the stage has {steps} steps", clip.schedule.warmup_steps));
        }
    }
    Ok(())
}

/// A batch is drawn from one window of a block shuffle: with fewer than 8 batches in it, batches would be made of neighbours,
/// and the same samples would be each other's negatives again and again.
fn windows(recipe: &Recipe, stage: &Stage) -> Result<(), String> {
    let Stage::Clip(clip) = stage else { return Ok(()) };
    let least = clip.global_batch.saturating_mul(LEAST_WINDOW);
    for name in &clip.data {
        if let Shuffle::Blocks { window, .. } = recipe.data[name].shuffle
            && window < least
        {
            return Err(format!(
                "`data.{name}.shuffle.window` is {window}, it must be at least {least}: {LEAST_WINDOW} global batches of \
                 {}, or batches would be made of neighbours. Enlarge it, or shuffle fully",
                clip.global_batch
            ));
        }
    }
    Ok(())
}

fn known_data(recipe: &Recipe, stage: &str, name: &str) -> Result<(), String> {
    if recipe.data.contains_key(name) {
        return Ok(());
    }
    let near = nearest(name, recipe.data.keys().map(String::as_str));
    let near = near.map_or(String::new(), |near| format!(", did you mean `{near}`?"));
    Err(format!("stage `{stage}` names data set `{name}`, but there is no `[data.{name}]`{near}"))
}

fn models(recipe: &Recipe, stage: &Stage) -> Result<(), String> {
    let missing = |section: &str| Err(format!("stage `{}` needs `[model.{section}]`", stage.kind()));
    let data = match stage {
        Stage::Embed(embed) => &embed.data,
        Stage::Clip(clip) => &clip.data,
        Stage::Eval(eval) => &eval.data,
    };
    if recipe.model.text.is_none()
        && let Some(name) = data.iter().find(|name| recipe.data[*name].vectors.is_none())
    {
        return Err(format!(
            "stage `{}` needs `[model.text]`, the LLM that reads the captions of data set `{name}`; or name the folder of \
             vectors that are there already in `data.{name}.vectors`",
            stage.kind()
        ));
    }
    match stage {
        Stage::Embed(_) => Ok(()),
        Stage::Eval(eval) if !eval.image_retrieval => Ok(()),
        Stage::Clip(_) | Stage::Eval(_) if recipe.model.vision.is_none() => missing("vision"),
        Stage::Clip(_) | Stage::Eval(_) if recipe.model.adapter.is_none() => missing("adapter"),
        Stage::Clip(_) | Stage::Eval(_) => Ok(()),
    }
}
