//! A model that was trained before, in the place of what a job trains: what `[model.trained]` of a recipe names.

use super::{
    error::TrainerError,
    stages::{self, TowerSettings, Towers},
};
use crate::{
    export::{self, Description, ExportError, Trained},
    storage::Storage,
    vectors::{Provenance, VectorStore},
};
use common::{
    ids::Step,
    recipe::{self, AdapterModel, Init, Lock, Objective, Precision, Recipe, Stage, TextModel, VisionModel},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// The model.
pub struct TrainedModel {
    folder: PathBuf,
    source: Source,
    /// What the text vectors of its training depended on, as far as it is known.
    provenance: Option<Provenance>,
    /// D, the width of its text vectors.
    text_width: usize,
}

enum Source {
    /// What `llm2clip export` wrote.
    Export(Box<Description>),
    /// A checkpoint of another job.
    Checkpoint(Box<Trained>),
}

/// How the model's captions were read.
struct Reader {
    model: TextModel,
    seed: u64,
    precision: Precision,
}

impl TrainedModel {
    /// Opens the model; weights of an export are read later, those of a checkpoint are verified now.
    ///
    /// # Errors
    /// When the folder is neither, or is damaged.
    pub fn open(storage: &Arc<Storage>, spec: &recipe::TrainedModel) -> Result<Self, TrainerError> {
        let folder = spec.folder.clone();
        if folder.join(export::FILE).is_file() {
            let description = export::describe(&folder)?;
            return Ok(Self {
                provenance: Some(Provenance::from(description.text.provenance.clone())),
                text_width: width(description.text.width),
                source: Source::Export(Box::new(description)),
                folder,
            });
        }
        let trained = Trained::open(storage, &folder, None).map_err(|error| match error {
            ExportError::NoCheckpoint { path } => TrainerError::Plan(format!(
                "`model.trained.folder` is {}, which is neither a folder that `llm2clip export` wrote (it has no {}) nor the \
                 output folder of a job with a checkpoint of `clip`, nor such a checkpoint",
                path.display(),
                export::FILE
            )),
            other => other.into(),
        })?;
        let provenance = match trained.encoder() {
            Ok(mut model) => {
                model.folder = spec.llm.clone().unwrap_or(model.folder);
                let precision = trained.recipe.embed_precision();
                Some(Provenance::of_encoder(&model, trained.recipe.seed, precision)?)
            }
            // Its vectors were given: nothing but their width is known.
            Err(_) => None,
        };
        let text_width = width(trained.text_width()?);
        Ok(Self { provenance, text_width, source: Source::Checkpoint(Box::new(trained)), folder })
    }

    /// Completes a recipe: towers as the model has them, and its LLM where the recipe names none and needs one.
    ///
    /// # Errors
    /// When the model does not say with which LLM it was trained.
    pub fn complete(&self, recipe: &mut Recipe) -> Result<(), TrainerError> {
        let (vision, adapter) = match &self.source {
            Source::Export(description) => {
                let sizes = description.adapter;
                let (blocks, expansion) = (width(sizes.blocks), width(sizes.expansion));
                let vision = VisionModel { folder: self.folder.clone(), init: Init::Pretrained };
                (vision, AdapterModel { blocks, expansion, l2_norm: sizes.l2_norm })
            }
            Source::Checkpoint(trained) => {
                // The weights come from the checkpoint: of the tower's folder its sizes are needed alone.
                let folder = trained.moved(&trained.vision()?.folder);
                (VisionModel { folder, init: Init::Random }, trained.adapter()?.clone())
            }
        };
        (recipe.model.vision, recipe.model.adapter) = (Some(vision), Some(adapter));
        let data: Vec<String> = recipe.stages.iter().flat_map(Stage::data).cloned().collect();
        if recipe.model.text.is_some() || !recipe.needs_text_model(&data) {
            return Ok(());
        }
        let llm = recipe.model.trained.as_ref().and_then(|trained| trained.llm.clone());
        let Reader { model, seed, precision } = self.reader(llm.as_deref())?;
        if !model.folder.is_dir() {
            return Err(TrainerError::Plan(format!(
                "the LLM {}, on whose vectors the model in {} was trained, is not there: name its folder with \
                 `model.trained.llm`, or `llm2clip eval --llm FOLDER`",
                model.folder.display(),
                self.folder.display()
            )));
        }
        recipe.model.text = Some(model);
        recipe.seed = seed;
        for stage in &mut recipe.stages {
            if let Stage::Embed(embed) = stage {
                embed.precision = precision;
            }
        }
        Ok(())
    }

    fn reader(&self, llm: Option<&Path>) -> Result<Reader, TrainerError> {
        match &self.source {
            Source::Export(description) => Ok(Reader {
                model: description.text_model(&self.folder, llm),
                seed: description.text.seed,
                precision: description.text.precision,
            }),
            Source::Checkpoint(trained) => {
                let mut model = trained.encoder()?;
                if let Some(llm) = llm {
                    llm.clone_into(&mut model.folder);
                }
                Ok(Reader { model, seed: trained.recipe.seed, precision: trained.recipe.embed_precision() })
            }
        }
    }

    /// The folder that the recipe names.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How many steps it was trained.
    pub fn step(&self) -> Step {
        match &self.source {
            Source::Export(description) => description.checkpoint.step,
            Source::Checkpoint(trained) => trained.checkpoint.manifest.step,
        }
    }

    /// Puts its weights into towers that were built of the recipe as [`TrainedModel::complete`] leaves it.
    ///
    /// # Errors
    /// When a weight is missing, of another shape, or not what was written.
    pub fn load(&self, towers: &mut Towers) -> Result<(), TrainerError> {
        match &self.source {
            Source::Export(description) => {
                export::load_weights(&self.folder, description, &mut towers.store)?;
                towers.store.freeze();
                Ok(())
            }
            Source::Checkpoint(trained) => towers.load(&trained.checkpoint),
        }
    }

    /// The towers that its weights are of: as its training had them, or, of an export, with everything merged.
    ///
    /// # Errors
    /// When a checkpoint's recipe has no `clip` stage.
    pub fn tower_settings(&self, text_width: usize, precision: Precision) -> Result<TowerSettings, TrainerError> {
        let plain = TowerSettings {
            text_width,
            log_scale_init: 0.0,
            objective: Objective::default(),
            lock: Lock::default(),
            lora: None,
            averaged: false,
            precision,
            activation_checkpointing: false,
        };
        match &self.source {
            Source::Export(_) => Ok(plain),
            Source::Checkpoint(trained) => {
                let clip = trained.recipe.clip().ok_or_else(|| {
                    TrainerError::Plan(format!("the recipe of {} has no `clip` stage", self.folder.display()))
                })?;
                let settings = stages::clip::tower_settings(clip, text_width);
                Ok(TowerSettings { precision, activation_checkpointing: false, ..settings })
            }
        }
    }

    /// Whether an LLM reads captions as the model needs them.
    ///
    /// # Errors
    /// What differs, and what to do.
    pub fn check_encoder(&self, encoder: &Provenance) -> Result<(), TrainerError> {
        let differs = self.provenance.as_ref().and_then(|trained| encoder.other_encoder(trained));
        let Some((field, here, then)) = differs else { return Ok(()) };
        Err(TrainerError::Plan(format!(
            "the LLM of this recipe does not read captions as the model in {} needs them: {field} is {here} in the recipe and \
             was {then} when its adapter was trained. Leave `[model.text]` out, and the model's own LLM is taken with its \
             settings; where it lies is said by `model.trained.llm`",
            self.folder.display()
        )))
    }

    /// Whether a data set's text vectors are such as the model's adapter takes.
    ///
    /// # Errors
    /// What differs, and what to do.
    pub fn check_vectors(&self, data: &str, store: &VectorStore) -> Result<(), TrainerError> {
        let fields = || self.provenance.as_ref().and_then(|trained| store.made_of()?.other_encoder(trained));
        let differs = if store.width() == self.text_width {
            fields()
        } else {
            Some(("width".to_owned(), store.width().to_string(), self.text_width.to_string()))
        };
        let Some((field, here, then)) = differs else { return Ok(()) };
        Err(TrainerError::Plan(format!(
            "the text vectors of data set `{data}` are not such as the adapter of the model in {} takes: their {field} is \
             {here}, and was {then} when it was trained. Let the `embed` stage make them with the model's own LLM (leave \
             `[model.text]` and `data.{data}.vectors` out), or name a folder of vectors that were made so",
            self.folder.display()
        )))
    }
}

fn width(number: i64) -> usize {
    usize::try_from(number).unwrap_or_default()
}
