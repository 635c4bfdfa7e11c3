//! What must hold between the parts of a recipe.

use super::{ContrastStage, Length, PairRule, Recipe, Stage, TextKind, error::nearest};
use crate::sampler::Shuffle;

/// How many global batches a window of a block shuffle has at least.
const LEAST_WINDOW: u64 = 8;

/// The first thing that does not fit.
pub(super) fn check(recipe: &Recipe) -> Result<(), String> {
    if recipe.stages.is_empty() {
        return Err("a recipe has at least one `[[stage]]`".to_owned());
    }
    if let Some(name) = recipe.text.keys().find(|name| recipe.data.contains_key(*name)) {
        return Err(format!("there are both `[data.{name}]` and `[text.{name}]`: rename one of them"));
    }
    recipe.data.iter().try_for_each(|(name, set)| super::eval::check_benchmark(name, set))?;
    trained(recipe)?;
    for (number, stage) in recipe.stages.iter().enumerate() {
        if recipe.stages[..number].iter().any(|before| before.kind() == stage.kind()) {
            return Err(format!("there are two stages of kind `{}`: a recipe has one of each", stage.kind()));
        }
        for name in stage.data() {
            known_data(recipe, stage, name)?;
        }
        if let Stage::Eval(eval) = stage {
            super::eval::check(recipe, eval)?;
        }
        models(recipe, stage)?;
        training(recipe, stage)?;
        if let Stage::Contrast(contrast) = stage {
            pairs(recipe, contrast)?;
        }
        if let Stage::Clip(clip) = stage
            && let Some(periodic) = &clip.eval
        {
            super::eval::check_periodic(recipe, periodic)?;
        }
    }
    ranks(recipe)?;
    super::distill::check(recipe)?;
    order_of_stages(recipe)
}

/// Every rank has a share of every global batch.
fn ranks(recipe: &Recipe) -> Result<(), String> {
    let Some(most) = recipe.elastic.and_then(|elastic| elastic.max_ranks) else { return Ok(()) };
    let batches = recipe.stages.iter().filter_map(|stage| Some((stage.kind(), stage.training()?.global_batch)));
    match batches.min_by_key(|(_, batch)| *batch).filter(|(_, batch)| u64::from(most) > *batch) {
        Some((kind, batch)) => Err(format!(
            "`elastic.max_ranks` is {most}, and stage `{kind}` has a global batch of {batch}, which so many cannot share"
        )),
        None => Ok(()),
    }
}

impl Stage {
    /// The data sets that the stage reads.
    pub fn data(&self) -> &[String] {
        match self {
            Stage::Mntp(stage) => &stage.training.data,
            Stage::Contrast(stage) => &stage.training.data,
            Stage::Embed(stage) => &stage.data,
            Stage::Distill(stage) => &stage.training.data,
            Stage::Clip(stage) => &stage.training.data,
            Stage::Eval(stage) => &stage.data,
            Stage::Export => &[],
        }
    }
}

/// A model that was trained before is evaluated, and nothing else.
fn trained(recipe: &Recipe) -> Result<(), String> {
    if recipe.model.trained.is_none() {
        return Ok(());
    }
    for (section, given) in [("vision", recipe.model.vision.is_some()), ("adapter", recipe.model.adapter.is_some())] {
        if given {
            return Err(format!("`[model.trained]` has towers of its own: leave `[model.{section}]` out"));
        }
    }
    match recipe.stages.iter().find(|stage| !matches!(stage, Stage::Embed(_) | Stage::Eval(_))) {
        Some(stage) => Err(format!(
            "`[model.trained]` is evaluated, by stages `embed` and `eval`, and there is a stage `{}`: leave it out, or say \
             `llm2clip eval --model FOLDER RECIPE`, which does",
            stage.kind()
        )),
        None => Ok(()),
    }
}

/// The LLM is tuned before it is used: after `embed` nothing would come of it. So is the adapter, before `clip`.
fn order_of_stages(recipe: &Recipe) -> Result<(), String> {
    let place = |kind: &str| recipe.stages.iter().position(|stage| stage.kind() == kind);
    let pairs =
        [("mntp", "contrast"), ("contrast", "embed"), ("mntp", "embed"), ("embed", "distill"), ("distill", "clip")];
    for (first, then) in pairs {
        if let (Some(late), Some(early)) = (place(first), place(then))
            && late > early
        {
            return Err(format!("stage `{first}` comes after `{then}`, which builds on it: exchange the two"));
        }
    }
    match (place("clip"), place("export")) {
        (Some(clip), Some(export)) if clip < export => Ok(()),
        (_, Some(_)) => Err("stage `export` needs a `clip` stage before it".to_owned()),
        _ => Ok(()),
    }
}

fn training(recipe: &Recipe, stage: &Stage) -> Result<(), String> {
    let Some(training) = stage.training() else { return Ok(()) };
    if let Length::Steps(steps) = training.length
        && training.schedule.warmup_steps >= steps
    {
        return Err(format!("`warmup_steps` is {}, the stage has {steps} steps", training.schedule.warmup_steps));
    }
    windows(recipe, training.global_batch, &training.data)
}

/// A batch is drawn from one window of a block shuffle: with fewer than 8 batches in it, batches would be made of neighbours,
/// and the same samples would be each other's negatives again and again.
fn windows(recipe: &Recipe, global_batch: u64, data: &[String]) -> Result<(), String> {
    let least = global_batch.saturating_mul(LEAST_WINDOW);
    for (name, set) in data.iter().filter_map(|name| Some((name, recipe.data.get(name)?))) {
        if let Shuffle::Blocks { window, .. } = set.shuffle
            && window < least
        {
            return Err(format!(
                "`data.{name}.shuffle.window` is {window}, it must be at least {least}: {LEAST_WINDOW} global batches of \
                 {global_batch}, or batches would be made of neighbours. Enlarge it, or shuffle fully"
            ));
        }
    }
    Ok(())
}

fn known_data(recipe: &Recipe, stage: &Stage, name: &str) -> Result<(), String> {
    let kind = stage.kind();
    if let Some(set) = recipe.data.get(name) {
        if stage.training().is_some() && !set.has_captions() {
            return Err(format!(
                "stage `{kind}` learns from captions, and data set `{name}` has none: name their columns in \
                 `data.{name}.captions`, or leave it out"
            ));
        }
        return Ok(());
    }
    match (recipe.text.get(name).map(|set| &set.kind), stage) {
        (Some(TextKind::Documents { .. }), Stage::Mntp(_)) | (Some(TextKind::Pairs { .. }), Stage::Contrast(_)) => {
            Ok(())
        }
        (Some(TextKind::Documents { .. }), Stage::Contrast(_)) => {
            Err(format!("stage `contrast` needs pairs, and `[text.{name}]` has documents: set its `kind` to \"pairs\""))
        }
        (Some(TextKind::Pairs { .. }), Stage::Mntp(_)) => {
            Err(format!("stage `mntp` reads documents, and `[text.{name}]` has pairs"))
        }
        (Some(_), _) => Err(format!("stage `{kind}` needs images, and `{name}` is a data set of texts")),
        (None, _) => {
            let known = recipe.data.keys().chain(recipe.text.keys()).map(String::as_str);
            let near = nearest(name, known).map_or(String::new(), |near| format!(", did you mean `{near}`?"));
            let section = if matches!(stage, Stage::Mntp(_) | Stage::Contrast(_)) {
                format!("`[data.{name}]` and no `[text.{name}]`")
            } else {
                format!("`[data.{name}]`")
            };
            Err(format!("stage `{kind}` names data set `{name}`, but there is no {section}{near}"))
        }
    }
}

/// The rule of every data set of images names columns that it has.
fn pairs(recipe: &Recipe, stage: &ContrastStage) -> Result<(), String> {
    for (name, set) in stage.training.data.iter().filter_map(|name| Some((name, recipe.data.get(name)?))) {
        let Some(rule) = stage.pairs.get(name) else {
            return Err(format!(
                "stage `contrast` needs to know how the captions of `{name}` make pairs: `pairs = {{ {name} = {{ rule = \
                 \"short-long\", short = …, long = … }} }}`, or rule = \"two-of\" or \"views\""
            ));
        };
        let columns: Vec<&str> = set.captions.columns.iter().map(|column| column.name.as_str()).collect();
        let drawn = set.captions.columns.iter().filter(|column| column.weight > 0).count();
        match rule {
            PairRule::ShortLong { short, long, .. } => {
                if let Some(missing) = [short, long].into_iter().find(|name| !columns.contains(&name.as_str())) {
                    let has = columns.join(", ");
                    return Err(format!(
                        "`stage.pairs.{name}` names column `{missing}`; `data.{name}.captions` has {has}"
                    ));
                }
            }
            PairRule::TwoOf { .. } if drawn < 2 => {
                return Err(format!(
                    "`stage.pairs.{name}` draws two of the caption columns, and `data.{name}.captions` has {drawn} with a \
                     weight above 0"
                ));
            }
            PairRule::Views if stage.lora.as_ref().is_none_or(|lora| lora.dropout == 0.0) => {
                return Err(format!(
                    "`stage.pairs.{name}` takes a caption twice, and nothing tells the two apart: give the stage `lora` with \
                     `dropout` above 0"
                ));
            }
            PairRule::TwoOf { .. } | PairRule::Views => {}
        }
    }
    match stage.pairs.keys().find(|name| recipe.text.contains_key(*name)) {
        Some(name) => {
            Err(format!("`stage.pairs` has a rule for `{name}`, whose rows are pairs as they are: leave it out"))
        }
        None => Ok(()),
    }
}

fn models(recipe: &Recipe, stage: &Stage) -> Result<(), String> {
    let missing = |section: &str| Err(format!("stage `{}` needs `[model.{section}]`", stage.kind()));
    if recipe.model.text.is_none() && recipe.model.trained.is_none() {
        if matches!(stage, Stage::Mntp(_) | Stage::Contrast(_) | Stage::Export) {
            return missing("text");
        }
        if let Some(name) = stage.data().iter().find(|name| recipe.data[*name].vectors.is_none()) {
            return Err(format!(
                "stage `{}` needs `[model.text]`, the LLM that reads the captions of data set `{name}`; or name the folder \
                 of vectors that are there already in `data.{name}.vectors`",
                stage.kind()
            ));
        }
    }
    match stage {
        Stage::Mntp(_) | Stage::Contrast(_) | Stage::Embed(_) => Ok(()),
        Stage::Distill(_) if recipe.model.teacher.is_none() => missing("teacher"),
        Stage::Eval(eval) if recipe.model.trained.is_some() || !eval.needs_towers(recipe) => Ok(()),
        _ if recipe.model.vision.is_none() => missing("vision"),
        _ if recipe.model.adapter.is_none() => missing("adapter"),
        Stage::Distill(_) | Stage::Clip(_) | Stage::Eval(_) | Stage::Export => Ok(()),
    }
}
