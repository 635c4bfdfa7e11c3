//! What of its models the stage `clip` trains, and what it keeps of them beside.

use super::{
    ClipStage, Lora, Recipe, Stage,
    error::RecipeError,
    raw::Table,
    read::{boolean, small, within},
    tuning,
};
use serde::{Deserialize, Serialize};

/// What is not trained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// The vision tower (open_clip's `--lock-image`).
    pub vision: bool,
    /// So many groups at the vision tower's end are trained all the same (`--lock-image-unlocked-groups`). From the end they
    /// are: the projection or pooling into the shared space; the last block with the norm behind it; each block before it; the
    /// embeddings.
    #[serde(default)]
    pub vision_unlocked_groups: u32,
    /// The adapter, which is the trained text tower here (`--lock-text`).
    #[serde(default)]
    pub adapter: bool,
    /// The logit scale, and the logit bias where there is one.
    #[serde(default)]
    pub logit_scale: bool,
}

impl Lock {
    /// Whether nothing of the vision tower is trained.
    pub fn whole_vision(&self) -> bool {
        self.vision && self.vision_unlocked_groups == 0
    }
}

/// An average of what is trained over the steps, kept in fp32: ē ← d·ē + (1 − d)·p after each update, from the start's values on
/// (Polyak averaging; timm's `ModelEmaV2`).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ema {
    /// d.
    pub decay: f64,
    /// Whether `eval` and `export` take the average and not the newest values. It is why one keeps an average: the default.
    #[serde(rename = "use")]
    pub used: bool,
}

/// Reads `ema`.
pub(super) fn ema(table: &mut Table<'_>) -> Result<Option<Ema>, RecipeError> {
    let Some(mut table) = table.table("ema")? else { return Ok(None) };
    let ema = Ema {
        decay: table.get("decay", |value| within(value, 0.0, 0.999_999_9))?.unwrap_or(0.9999),
        used: table.get("use", boolean)?.unwrap_or(true),
    };
    table.finish()?;
    Ok(Some(ema))
}

/// Reads `lora`: of the vision tower, whose own weights stay as they are then.
pub(super) fn lora(table: &mut Table<'_>, lock: Lock) -> Result<Option<Lora>, RecipeError> {
    let lora = tuning::lora(table, &[])?;
    if lora.is_some() && lock.vision {
        return Err(table.error(
            "`stage.lora` trains low-rank updates beside a vision tower that is locked anyway: leave `lock.vision` out",
        ));
    }
    Ok(lora)
}

impl Recipe {
    /// The stage `clip`.
    pub fn clip(&self) -> Option<&ClipStage> {
        self.stages.iter().find_map(|stage| if let Stage::Clip(clip) = stage { Some(clip.as_ref()) } else { None })
    }
}

/// Reads `lock`.
pub(super) fn lock(table: &mut Table<'_>) -> Result<Lock, RecipeError> {
    let Some(mut table) = table.table("lock")? else { return Ok(Lock::default()) };
    let lock = Lock {
        vision: table.get("vision", boolean)?.unwrap_or(false),
        vision_unlocked_groups: table.get("vision_unlocked_groups", small)?.unwrap_or(0),
        adapter: table.get("adapter", boolean)?.unwrap_or(false),
        logit_scale: table.get("logit_scale", boolean)?.unwrap_or(false),
    };
    if lock.vision_unlocked_groups > 0 && !lock.vision {
        return Err(table.error(
            "`stage.lock.vision_unlocked_groups` is of a locked vision tower: set `vision` = true, or leave it out",
        ));
    }
    if lock.whole_vision() && lock.adapter {
        return Err(table.error(
            "`stage.lock` locks the vision tower and the adapter, and nothing is left to learn: unlock one of them, or some \
             groups of the tower by `vision_unlocked_groups`",
        ));
    }
    table.finish()?;
    Ok(lock)
}
