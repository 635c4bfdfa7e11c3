//! The stages of a recipe.

use super::{
    Augment, CheckpointPolicy, ClipStage, ConvertToRgb, Decay, EmbedStage, Length, Optimizer, PixelMode, Precision,
    Schedule, Stage, Training, distill,
    error::{RecipeError, nearest},
    eval, mix, objective, parts,
    raw::{Table, Value},
    read::{boolean, choice, float, positive, text, unsigned, within},
    tuning,
};
use crate::sampler::Policy;

const KINDS: [&str; 7] = ["mntp", "contrast", "embed", "distill", "clip", "eval", "export"];

/// Reads `[[stage]]`.
pub(super) fn read(table: &mut Table<'_>) -> Result<Vec<Stage>, RecipeError> {
    let Some(node) = table.take("stage") else {
        return Err(table.error("`[[stage]]` is missing: a recipe has at least one"));
    };
    let Value::List(items) = node.value else {
        return Err(table.file.error(&node.place, "`stage` must be a list: write `[[stage]]`"));
    };
    items.into_iter().map(|item| stage(Table::of(table.file, "stage", item)?)).collect()
}

fn stage(mut table: Table<'_>) -> Result<Stage, RecipeError> {
    let kind = table.need("kind", |value| {
        let kind = text(value)?;
        if KINDS.contains(&kind.as_str()) {
            return Ok(kind);
        }
        let near = nearest(&kind, KINDS).map_or(String::new(), |near| format!(", did you mean `{near}`?"));
        Err(format!("is `{kind}`, it must be one of: {}{near}", KINDS.join(", ")))
    })?;
    if kind == "export" {
        // It reads what the other stages left, and has no settings.
        return table.finish().map(|()| Stage::Export);
    }
    let data = table.need("data", mix::data)?;
    let read = match kind.as_str() {
        "embed" => {
            let batch_tokens = table.get("batch_tokens", positive)?.unwrap_or(16_384) as usize;
            Stage::Embed(EmbedStage { data, batch_tokens, precision: precision(&mut table)? })
        }
        "mntp" => {
            let training = training(&mut table, data, &MNTP)?;
            Stage::Mntp(Box::new(tuning::mntp(&mut table, training)?))
        }
        "contrast" => {
            let training = training(&mut table, data, &TRANSFORMERS)?;
            Stage::Contrast(Box::new(tuning::contrast(&mut table, training)?))
        }
        "distill" => {
            let training = training(&mut table, data, &OPEN_CLIP)?;
            Stage::Distill(Box::new(distill::stage(&mut table, training)?))
        }
        "clip" => Stage::Clip(Box::new(clip(&mut table, data)?)),
        _ => Stage::Eval(eval::read(&mut table, data)?),
    };
    table.finish()?;
    Ok(read)
}

fn precision(table: &mut Table<'_>) -> Result<Precision, RecipeError> {
    let precisions = [("fp32", Precision::Fp32), ("bf16", Precision::Bf16)];
    Ok(table.get("precision", |value| choice(value, &precisions))?.unwrap_or_default())
}

fn training(table: &mut Table<'_>, data: Vec<String>, defaults: &Defaults) -> Result<Training, RecipeError> {
    let global_batch = table.need("global_batch", positive)?;
    let chunk = table.get("chunk", positive)?.unwrap_or(global_batch);
    Ok(Training {
        mix: mix::mix(table, &data, defaults.policy)?,
        tail: mix::tail(table)?,
        data,
        global_batch,
        chunk,
        length: length(table)?,
        precision: precision(table)?,
        optimizer: optimizer(table, defaults)?,
        schedule: schedule(table, defaults.decay)?,
        checkpoint: checkpoint(table)?,
        activation_checkpointing: table.get("activation_checkpointing", boolean)?.unwrap_or(false),
        profile_steps: table.get("profile_steps", unsigned)?.unwrap_or(0),
        skip_nonfinite: table.get("skip_nonfinite", unsigned)?.unwrap_or(0),
    })
}

/// What a training does when the recipe is silent.
struct Defaults {
    policy: Policy,
    betas: (f64, f64),
    eps: f64,
    weight_decay: f64,
    decay: Decay,
}

/// Of stage 2 and its warm start: open_clip's.
const OPEN_CLIP: Defaults =
    Defaults { policy: Policy::OneSource, betas: (0.9, 0.98), eps: 1e-6, weight_decay: 0.05, decay: Decay::Cosine };

/// Of stage 1: those of transformers' trainer.
const TRANSFORMERS: Defaults =
    Defaults { policy: Policy::OneSource, betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.0, decay: Decay::Linear };

/// Of `mntp`, whose data sets the reference shuffles together.
const MNTP: Defaults = Defaults { policy: Policy::Mixed, ..TRANSFORMERS };

fn clip(table: &mut Table<'_>, data: Vec<String>) -> Result<ClipStage, RecipeError> {
    let (objective, lock, ema) = (objective::read(table)?, parts::lock(table)?, parts::ema(table)?);
    if objective.self_distillation.is_some() && (ema.is_none() || lock.whole_vision()) {
        return Err(table.error(
            "`self_distillation` holds the vision tower to its own average: the tower must be trained, and the stage needs `ema = \
             { decay = … }`",
        ));
    }
    Ok(ClipStage {
        training: training(table, data, &OPEN_CLIP)?,
        augment: augment(table)?,
        pixels: pixels(table)?,
        convert_to_rgb: convert_to_rgb(table)?,
        patch_dropout: table.get("patch_dropout", |value| within(value, 0.0, 0.95))?.unwrap_or(0.0),
        logit_scale_init: table
            .get("logit_scale_init", |v| within(v, 0.0, 100f64.ln()))?
            .unwrap_or(objective.loss.log_scale_init()),
        objective,
        lock,
        lora: parts::lora(table, lock)?,
        ema,
        eval: eval::periodic(table)?,
    })
}

fn length(table: &mut Table<'_>) -> Result<Length, RecipeError> {
    let epochs = table.get("epochs", positive)?;
    let steps = table.get("steps", positive)?;
    match (epochs, steps) {
        (Some(epochs), None) => Ok(Length::Epochs(epochs)),
        (None, Some(steps)) => Ok(Length::Steps(steps)),
        (None, None) => Err(table
            .mistyped(&["epochs", "steps"])
            .unwrap_or_else(|| table.error("a stage that trains needs either `epochs` or `steps`"))),
        (Some(_), Some(_)) => Err(table.error("a stage that trains has either `epochs` or `steps`, not both")),
    }
}

/// Two numbers, the lower one first.
fn pair(value: &Value, low: f64, high: f64) -> Result<(f64, f64), String> {
    match value {
        Value::List(items) if items.len() == 2 => {
            let (first, second) = (within(&items[0].value, low, high)?, within(&items[1].value, low, high)?);
            if first <= second {
                Ok((first, second))
            } else {
                Err(format!("is [{first}, {second}], the lower end comes first"))
            }
        }
        _ => Err("must be a list of two numbers".to_owned()),
    }
}

fn augment(table: &mut Table<'_>) -> Result<Augment, RecipeError> {
    let mut augment = table.table("augment")?.unwrap_or_else(|| Table::empty(table.file, "stage.augment"));
    let read = Augment {
        scale: augment.get("scale", |value| pair(value, 1e-4, 1.0))?.unwrap_or((0.9, 1.0)),
        ratio: augment.get("ratio", |value| pair(value, 1e-2, 1e2))?.unwrap_or((0.75, 4.0 / 3.0)),
    };
    augment.finish()?;
    Ok(read)
}

fn pixels(table: &mut Table<'_>) -> Result<PixelMode, RecipeError> {
    let modes = [("pillow-exact", PixelMode::PillowExact), ("fast", PixelMode::Fast)];
    Ok(table.get("pixels", |value| choice(value, &modes))?.unwrap_or_default())
}

fn convert_to_rgb(table: &mut Table<'_>) -> Result<ConvertToRgb, RecipeError> {
    let times = [("before-resize", ConvertToRgb::BeforeResize), ("after-resize", ConvertToRgb::AfterResize)];
    Ok(table.get("convert_to_rgb", |value| choice(value, &times))?.unwrap_or_default())
}

fn optimizer(table: &mut Table<'_>, defaults: &Defaults) -> Result<Optimizer, RecipeError> {
    let Some(mut optimizer) = table.table("optimizer")? else {
        return Err(table.error("`stage.optimizer` is missing; it needs at least `learning_rate`"));
    };
    let beta = |value: &Value| match value {
        Value::List(items) if items.len() == 2 => {
            Ok((within(&items[0].value, 0.0, 0.999_999)?, within(&items[1].value, 0.0, 0.999_999)?))
        }
        _ => Err("must be a list of two numbers".to_owned()),
    };
    let above_zero = |value: &Value| {
        float(value)
            .and_then(|number| if number > 0.0 { Ok(number) } else { Err(format!("is {number}, it must be above 0")) })
    };
    let read = Optimizer {
        learning_rate: optimizer.need("learning_rate", above_zero)?,
        betas: optimizer.get("betas", beta)?.unwrap_or(defaults.betas),
        eps: optimizer.get("eps", above_zero)?.unwrap_or(defaults.eps),
        weight_decay: optimizer.get("weight_decay", |value| within(value, 0.0, 10.0))?.unwrap_or(defaults.weight_decay),
        clip_norm: optimizer.get("clip_norm", above_zero)?,
        layer_decay: optimizer.get("layer_decay", |value| within(value, 1e-3, 1.0))?.unwrap_or(1.0),
        sharded: optimizer.get("sharded", boolean)?.unwrap_or(false),
    };
    optimizer.finish()?;
    Ok(read)
}

fn schedule(table: &mut Table<'_>, decay: Decay) -> Result<Schedule, RecipeError> {
    let decays = [("cosine", Decay::Cosine), ("linear", Decay::Linear), ("constant", Decay::Constant)];
    let mut schedule = table.table("schedule")?.unwrap_or_else(|| Table::empty(table.file, "stage.schedule"));
    let read = Schedule {
        warmup_steps: schedule.get("warmup_steps", unsigned)?.unwrap_or(0),
        decay: schedule.get("decay", |value| choice(value, &decays))?.unwrap_or(decay),
    };
    schedule.finish()?;
    Ok(read)
}

fn checkpoint(table: &mut Table<'_>) -> Result<CheckpointPolicy, RecipeError> {
    let mut checkpoint = table.table("checkpoint")?.unwrap_or_else(|| Table::empty(table.file, "stage.checkpoint"));
    let at_least_two = |value: &Value| {
        unsigned(value)
            .and_then(|keep| if keep >= 2 { Ok(keep) } else { Err(format!("is {keep}, at least 2 are kept")) })
    };
    let read = CheckpointPolicy {
        every_steps: checkpoint.get("every_steps", positive)?.unwrap_or(500),
        keep: checkpoint.get("keep", at_least_two)?.unwrap_or(3) as usize,
    };
    checkpoint.finish()?;
    Ok(read)
}
