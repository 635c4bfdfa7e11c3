//! What is exported: a checkpoint of the `clip` stage and the recipe it was trained with.

use super::{ExportError, error::io, recipe_file};
use crate::{
    checkpoint::{CheckpointError, Loaded, Shelf},
    model::vision::VisionConfig,
    storage::Storage,
};
use common::{
    ids::Step,
    manifest::paths,
    recipe::{AdapterModel, DataPath, Recipe, TextModel, VisionModel, is_url},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tch::Tensor;

const STAGE: &str = "clip";
/// What a checkpoint puts before the names of parameters.
const PARAMETER: &str = "param.";
/// And before those of their averages.
const AVERAGE: &str = "ema.";
/// The ends of the names of low-rank updates.
const LORA_A: &str = ".lora_A.weight";
const LORA_B: &str = ".lora_B.weight";

/// A verified checkpoint with its recipe.
#[derive(Debug)]
pub struct Trained {
    /// The recipe.
    pub recipe: Recipe,
    /// The checkpoint.
    pub checkpoint: Loaded,
    /// The job's output folder, in which results and tuned LLMs are.
    pub output: PathBuf,
}

impl Trained {
    /// Opens what a path or URL names: a job's output folder or the place of its checkpoints, whose newest checkpoint is taken, the
    /// `clip` folder of either, or one checkpoint. `recipe` is used where the job did not leave its own.
    ///
    /// # Errors
    /// When there is no checkpoint that verifies, no recipe, or they do not belong together.
    pub fn open(storage: &Arc<Storage>, path: &Path, recipe: Option<Recipe>) -> Result<Self, ExportError> {
        let (root, named) = place(path)?;
        let none = || ExportError::NoCheckpoint { path: path.to_owned() };
        let stage = paths::stage_folder(&root, STAGE);
        let here = Shelf::at(storage, &stage)?;
        let named = named.map(|step| here.find(step)?.ok_or_else(none)).transpose()?;
        let left = || match recipe_file::read(storage, &stage) {
            // Of a folder without a checkpoint it is of no interest that it has no recipe either.
            Err(ExportError::NoRecipe { .. }) if named.is_none() && here.committed()?.is_empty() => Err(none()),
            read => Ok((read?, stage.join(recipe_file::FILE).display().to_string())),
        };
        let (recipe, of) = recipe.map_or_else(left, |recipe| Ok((recipe, "the recipe that was named".to_owned())))?;
        let elsewhere = recipe.checkpoints.as_ref().map(DataPath::as_path);
        let (checkpoint, is_here) = match (named, elsewhere) {
            (Some(checkpoint), _) => (checkpoint, true),
            (None, Some(place)) if root == recipe.output => (newest(storage, place)?.ok_or_else(none)?, false),
            (None, elsewhere) => match (here.newest()?, elsewhere) {
                (Some(checkpoint), _) => (checkpoint, true),
                // An output folder that was moved.
                (None, Some(place)) => (newest(storage, place)?.ok_or_else(none)?, false),
                (None, None) => return Err(none()),
            },
        };
        if checkpoint.manifest.stage != STAGE {
            return Err(none());
        }
        let (theirs, ours) = (&checkpoint.manifest.recipe_fingerprint, recipe.fingerprint());
        if *theirs != ours {
            let short = |digest: &str| digest.chars().take(12).collect();
            let checkpoint = checkpoint.place().to_owned();
            return Err(ExportError::OtherRecipe { checkpoint, recipe: of, theirs: short(theirs), ours: short(&ours) });
        }
        // A place of checkpoints alone says nothing of where the job's results are.
        let output = if is_here && elsewhere.is_some() { recipe.output.clone() } else { root };
        Ok(Self { recipe, checkpoint, output })
    }

    /// The vision tower's settings.
    pub fn vision(&self) -> Result<&VisionModel, ExportError> {
        self.recipe.model.vision.as_ref().ok_or(ExportError::Incomplete("[model.vision]"))
    }

    /// The LLM that made the text vectors, with what stages before made of it.
    pub fn encoder(&self) -> Result<TextModel, ExportError> {
        let mut spec = self.recipe.encoder().ok_or(ExportError::Incomplete("[model.text]"))?;
        spec.folder = self.moved(&spec.folder);
        spec.adapters.iter_mut().for_each(|folder| *folder = self.moved(folder));
        Ok(spec)
    }

    /// The adapter's settings.
    pub fn adapter(&self) -> Result<&AdapterModel, ExportError> {
        self.recipe.model.adapter.as_ref().ok_or(ExportError::Incomplete("[model.adapter]"))
    }

    /// A folder that the recipe names, where it is now: a job's output may have been moved since.
    pub fn moved(&self, folder: &Path) -> PathBuf {
        folder.strip_prefix(&self.recipe.output).map_or_else(|_| folder.to_owned(), |below| self.output.join(below))
    }

    /// The sizes of the vision tower.
    pub fn vision_config(&self) -> Result<VisionConfig, ExportError> {
        Ok(VisionConfig::read(&self.vision()?.folder)?)
    }

    /// Every parameter by our own name, sorted; low-rank updates are in those that they stand beside.
    pub fn parameters(&self) -> Result<Vec<(String, Tensor)>, ExportError> {
        let all = self.checkpoint.manifest.parts.iter().flat_map(|part| part.tensors.keys());
        let mut names: Vec<&str> = all.filter_map(|name| name.strip_prefix(PARAMETER)).collect();
        names.retain(|name| !name.ends_with(LORA_A) && !name.ends_with(LORA_B));
        names.sort_unstable();
        names.into_iter().map(|name| Ok((name.to_owned(), self.parameter(name)?))).collect()
    }

    /// One parameter: what is to be used of it, with its low-rank update.
    pub fn parameter(&self, name: &str) -> Result<Tensor, ExportError> {
        let base = self.own(name)?;
        let (Some(module), Some(lora)) =
            (name.strip_suffix(".weight"), self.recipe.clip().and_then(|c| c.lora.as_ref()))
        else {
            return Ok(base);
        };
        let names = [LORA_A, LORA_B].map(|end| format!("{module}{end}"));
        if !self.holds(&format!("{PARAMETER}{}", names[0])) {
            return Ok(base);
        }
        let (a, b) = (self.own(&names[0])?, self.own(&names[1])?);
        Ok(base + b.matmul(&a) * (lora.alpha / f64::from(lora.rank)))
    }

    /// Every low-rank update of the vision tower by our own name, sorted; none when it was trained without.
    pub fn updates(&self) -> Result<Vec<(String, Tensor)>, ExportError> {
        let all = self.checkpoint.manifest.parts.iter().flat_map(|part| part.tensors.keys());
        let mut names: Vec<&str> = all.filter_map(|name| name.strip_prefix(PARAMETER)).collect();
        names.retain(|name| name.ends_with(LORA_A) || name.ends_with(LORA_B));
        names.sort_unstable();
        names.into_iter().map(|name| Ok((name.to_owned(), self.own(name)?))).collect()
    }

    /// A parameter as it is in the checkpoint: its average, where one is to be used and kept.
    fn own(&self, name: &str) -> Result<Tensor, ExportError> {
        let average = format!("{AVERAGE}{name}");
        let used = self.recipe.clip().is_some_and(|clip| clip.ema.is_some_and(|ema| ema.used));
        let name = if used && self.holds(&average) { average } else { format!("{PARAMETER}{name}") };
        Ok(self.checkpoint.tensor(&name)?)
    }

    /// Whether the checkpoint has a tensor.
    fn holds(&self, name: &str) -> bool {
        self.checkpoint.manifest.parts.iter().any(|part| part.tensors.contains_key(name))
    }

    /// The logit bias; absent when the loss had none.
    pub fn logit_bias(&self) -> Result<Option<Tensor>, ExportError> {
        let biased = self.recipe.clip().is_some_and(|clip| clip.objective.logit_bias_init.is_some());
        biased.then(|| self.parameter("logit_bias")).transpose()
    }

    /// D, the width of the text vectors.
    pub fn text_width(&self) -> Result<i64, ExportError> {
        // The adapter's last norm has it.
        let name = format!("adapter.{}.weight", self.adapter()?.blocks);
        Ok(self.parameter(&name)?.size().first().copied().unwrap_or_default())
    }

    /// What `eval` found out, if it did.
    pub fn results(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&std::fs::read(self.output.join("eval/results.json")).ok()?).ok()
    }

    /// Everything that the export is made of, as one digest.
    pub fn digest(&self) -> Result<String, ExportError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(env!("CARGO_PKG_VERSION").as_bytes());
        hasher.update(self.recipe.fingerprint().as_bytes());
        for part in &self.checkpoint.manifest.parts {
            hasher.update(part.blake3.as_bytes());
        }
        hasher.update(self.results().map(|results| results.to_string()).unwrap_or_default().as_bytes());
        if self.recipe.clip().is_some_and(|clip| clip.lora.is_some()) {
            // An export of before there was this folder is made again.
            hasher.update(super::vision_lora::FOLDER.as_bytes());
        }
        for file in super::llm::Llm::of(self)?.files()? {
            hasher.update(super::files::digest(&file)?.as_bytes());
        }
        Ok(hasher.finalize().to_string())
    }
}

/// The folder or URL above `clip` that a path means, and the checkpoint that it names.
fn place(path: &Path) -> Result<(PathBuf, Option<Step>), ExportError> {
    let absolute =
        if is_url(path) { path.to_owned() } else { std::fs::canonicalize(path).map_err(io("open", path))? };
    let name = absolute.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let parent = |path: &Path| path.parent().map(Path::to_owned).unwrap_or_default();
    Ok(match paths::parse_step_folder(name) {
        Some(step) => (parent(&parent(&absolute)), Some(step)),
        None if name == STAGE && !absolute.join(STAGE).is_dir() => (parent(&absolute), None),
        None => (absolute, None),
    })
}

fn newest(storage: &Arc<Storage>, root: &Path) -> Result<Option<Loaded>, CheckpointError> {
    Shelf::open(storage, root, STAGE)?.newest()
}
