//! Where the text vectors of a data set are: made by the `embed` stage, or there already.

use crate::{
    data::{Dataset, LLM2CLIP_VECTORS, storage::Location},
    trainer::{context::Context, error::TrainerError},
    vectors::{Provenance, VectorStore, shard_folder, shard_name},
};

/// Where the vectors of one data set come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// The LLM reads the captions.
    Encoder,
    /// Another job's `embed/NAME`, read where it lies.
    Store(Location),
    /// A folder of LLM2CLIP's tars, which are made into files of ours.
    Llm2clip(Location),
}

/// The vectors of a stage's data sets.
pub(super) struct TextVectors<'a, 'b> {
    context: &'a Context<'b>,
    /// Of what the LLM makes; absent when it makes nothing.
    encoder: Option<Provenance>,
}

impl<'a, 'b> TextVectors<'a, 'b> {
    /// Of a stage over these data sets. The LLM's weights are read for their digest when any of them needs it.
    ///
    /// # Errors
    /// When the recipe has no LLM and needs one, or its folder cannot be read.
    pub(super) fn of(context: &'a Context<'b>, data: &[String]) -> Result<Self, TrainerError> {
        let recipe = &context.plan.recipe;
        if !recipe.needs_text_model(data) {
            return Ok(Self { context, encoder: None });
        }
        let spec = recipe.model.text.as_ref();
        let spec = spec.ok_or_else(|| TrainerError::Plan("text vectors need [model.text]".to_owned()))?;
        let encoder = Provenance::of_encoder(spec, recipe.seed, recipe.embed_precision())?;
        Ok(Self { context, encoder: Some(encoder) })
    }

    /// Where a data set's come from.
    ///
    /// # Errors
    /// When the recipe says that they are there already, and they are not.
    pub(super) fn origin(&self, dataset: &Dataset) -> Result<Origin, TrainerError> {
        let given = self.context.plan.recipe.data.get(dataset.name()).and_then(|spec| spec.vectors.as_ref());
        let Some(given) = given else { return Ok(Origin::Encoder) };
        let folder = Location::try_from(given)?;
        let first = dataset.shards().iter().enumerate().find(|(_, shard)| !shard.samples.is_empty());
        let (index, shard) = first.expect("a data set has samples");
        let there = |name: &str| folder.join(name).and_then(|location| self.context.storage.exists(&location));
        let (ours, theirs) = (shard_name(index, &shard.stem), tar_name(&shard.stem));
        if there(&ours)? {
            return Ok(Origin::Store(folder));
        }
        if there(&theirs)? {
            return Ok(Origin::Llm2clip(folder));
        }
        Err(TrainerError::Plan(format!(
            "`data.{}.vectors` is {folder}, and neither {ours} (of another job's `embed/{}`) nor {theirs} (LLM2CLIP's) is \
             there; leave it out to let the `embed` stage make the vectors",
            dataset.name(),
            dataset.name()
        )))
    }

    /// What a data set's vectors must have been made of.
    pub(super) fn provenance(&self, dataset: &Dataset, origin: &Origin) -> Provenance {
        let encoder = match origin {
            // Which LLM another job had is its own affair: the data must be the same.
            Origin::Store(_) => Provenance::named([]),
            Origin::Llm2clip(folder) => Provenance::named([("vectors", folder.to_string().as_str())]),
            Origin::Encoder => self.encoder.clone().expect("a data set without vectors needs the LLM"),
        };
        encoder.over(dataset.fingerprint())
    }

    /// Opens a data set's vectors.
    ///
    /// # Errors
    /// When some are missing, damaged, or made of something else.
    pub(super) fn open(&self, dataset: &Dataset) -> Result<VectorStore, TrainerError> {
        let origin = self.origin(dataset)?;
        let provenance = self.provenance(dataset, &origin);
        let folder = match origin {
            Origin::Store(folder) => folder,
            Origin::Encoder | Origin::Llm2clip(_) => shard_folder(&self.context.plan.output, dataset.name()).into(),
        };
        let shards = dataset.shards().iter().map(|shard| (shard.stem.as_str(), shard.samples.clone()));
        Ok(VectorStore::open(self.context.storage, &folder, dataset.name(), shards, &provenance)?)
    }
}

/// The tar in which LLM2CLIP keeps a shard's vectors.
pub(super) fn tar_name(stem: &str) -> String {
    format!("{stem}{LLM2CLIP_VECTORS}")
}
