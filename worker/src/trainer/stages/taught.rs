//! What the recipe's teacher, CLIP's text tower, makes of captions: made by the stage `embed`, learned from by `distill`.
//!
//! Kept as the LLM's vectors are, in `embed-teacher/DATA_SET`, a column a caption column; not normalised.

use super::text_vectors::comparable;
use crate::{
    data::Dataset,
    trainer::{context::Context, error::TrainerError},
    vectors::{Provenance, VectorStore, taught_folder},
};
use std::{path::PathBuf, sync::Arc};

/// The teacher's vectors of a stage's data sets.
pub(super) struct TaughtVectors<'a, 'b> {
    context: &'a Context<'b>,
    teacher: Provenance,
}

impl<'a, 'b> TaughtVectors<'a, 'b> {
    /// Of the recipe's teacher, whose weights are read for their digest; absent when the recipe has none.
    ///
    /// # Errors
    /// When its folder cannot be read.
    pub(super) fn of(context: &'a Context<'b>) -> Result<Option<Self>, TrainerError> {
        let recipe = &context.plan.recipe;
        let Some(spec) = &recipe.model.teacher else { return Ok(None) };
        let teacher = Provenance::of_teacher(spec, recipe.seed, recipe.embed_precision())?;
        Ok(Some(Self { context, teacher }))
    }

    /// Where a data set's are.
    pub(super) fn folder(&self, dataset: &Dataset) -> PathBuf {
        taught_folder(&self.context.plan.output, dataset.name())
    }

    /// What a data set's must have been made of.
    pub(super) fn provenance(&self, dataset: &Dataset) -> Provenance {
        self.teacher.over(dataset.fingerprint())
    }

    /// Opens a data set's.
    ///
    /// # Errors
    /// When some are missing, damaged, or made of something else.
    pub(super) fn open(&self, dataset: &Dataset) -> Result<VectorStore, TrainerError> {
        let shards = dataset.shards().iter().map(|shard| (shard.stem.as_str(), shard.samples.clone()));
        let (folder, provenance) = (self.folder(dataset).into(), self.provenance(dataset));
        Ok(VectorStore::open(self.context.storage, &folder, dataset.name(), shards, &provenance)?)
    }

    /// Opens those of a stage's data sets; returns them and their width.
    ///
    /// # Errors
    /// As [`TaughtVectors::open`].
    pub(super) fn open_all(&self, datasets: &[Arc<Dataset>]) -> Result<(Vec<VectorStore>, usize), TrainerError> {
        let stores = datasets.iter().map(|data| self.open(data)).collect::<Result<Vec<_>, _>>()?;
        let named: Vec<(&str, &VectorStore)> = datasets.iter().map(|data| data.name()).zip(&stores).collect();
        comparable(&named)?;
        let width = stores.first().map_or(0, VectorStore::width);
        Ok((stores, width))
    }
}
