//! The data sets of an evaluation, open: those whose images and captions are ranked, and those that are classified.

use super::{
    super::{
        prompts,
        text_vectors::{TextVectors, comparable},
        towers::Towers,
    },
    classification::Classification,
    features::Features,
    figures::{Figures, Subject},
    images::Pass,
};
use crate::{
    data::Dataset,
    trainer::{context::Context, error::TrainerError},
    vectors::VectorStore,
};
use std::sync::Arc;

/// Data sets with their text vectors.
pub struct Sets {
    /// With captions.
    pub ranked: Vec<Ranked>,
    /// With classes.
    pub classified: Vec<Classification>,
}

/// A data set with captions.
pub struct Ranked {
    /// The data set.
    pub data: Arc<Dataset>,
    /// The vectors of its captions.
    pub vectors: VectorStore,
}

/// What a ranking found, and what of.
pub struct Retrieved {
    /// What was ranked.
    pub features: Features,
    /// Both directions of every caption column.
    pub figures: Vec<Figures>,
    /// Of the first column's texts the best images.
    pub best: Vec<Vec<i64>>,
}

impl Sets {
    /// Opens the data sets of these names; all of their vectors are of one encoder, and of the model that is evaluated where
    /// the recipe names one.
    ///
    /// # Errors
    /// When data or vectors are missing or do not fit each other.
    pub fn open(names: &[String], context: &Context<'_>) -> Result<Self, TrainerError> {
        let datasets = context.datasets(&prompts::with_captions(&context.plan.recipe, names))?;
        let sources = TextVectors::of(context, names)?;
        let (stores, _) = sources.open_all(&datasets)?;
        let ranked = datasets.into_iter().zip(stores).map(|(data, vectors)| Ranked { data, vectors }).collect();
        let sets = Self { ranked, classified: Classification::open_all(names, context, &sources)? };
        let stores: Vec<(&str, &VectorStore)> = sets.stores().collect();
        comparable(&stores)?;
        if let Some(trained) = context.trained {
            stores.iter().try_for_each(|(name, store)| trained.check_vectors(name, store))?;
        }
        Ok(sets)
    }

    fn stores(&self) -> impl Iterator<Item = (&str, &VectorStore)> {
        let ranked = self.ranked.iter().map(|set| (set.data.name(), &set.vectors));
        ranked.chain(self.classified.iter().map(|set| (set.name(), set.vectors())))
    }

    /// D, the vectors' width.
    pub fn width(&self) -> usize {
        self.stores().next().map_or(0, |(_, store)| store.width())
    }
}

impl Ranked {
    /// Ranks texts for images and images for texts, column by column.
    ///
    /// # Errors
    /// When a vector is missing, more images are broken than the recipe bears, or a peer fails.
    pub fn measure(&self, towers: &Towers, pass: Pass<'_>, context: &Context<'_>) -> Result<Retrieved, TrainerError> {
        let dataset = &self.data;
        let features = Features::compute(dataset, &self.vectors, towers, pass, context)?;
        let pairs = features.samples.len() as u64;
        let (mut figures, mut first) = (Vec::new(), None);
        for texts in &features.texts {
            let (images, side) = (features.images(), texts.side());
            let subject = |direction: &str| Subject {
                data: dataset.name(),
                captions: &texts.name,
                direction: direction.to_owned(),
                pairs,
                left_out: dataset.len() - pairs,
            };
            figures.push(Figures::compute(subject("image to text"), images, side, context)?.0);
            let (found, best) = Figures::compute(subject("text to image"), side, images, context)?;
            figures.push(found);
            first.get_or_insert(best);
        }
        Ok(Retrieved { features, figures, best: first.unwrap_or_default() })
    }
}
