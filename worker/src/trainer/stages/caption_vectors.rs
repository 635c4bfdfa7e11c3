//! The text vectors of samples: which caption each has in its epoch, and where its vector lies.

use crate::{
    data::{Beside, DataError, Dataset, SampleRequest},
    storage::{Block, Storage},
    trainer::error::TrainerError,
    vectors::{VectorStore, nth},
};
use common::sampler;
use half::bf16;
use std::sync::Arc;

/// The vectors of a stage's data sets, one caption a sample, chosen by (seed, data set, sample, epoch).
#[derive(Debug)]
pub(super) struct CaptionVectors {
    seed: u64,
    datasets: Vec<Arc<Dataset>>,
    weights: Vec<Vec<u32>>,
    stores: Vec<VectorStore>,
}

impl CaptionVectors {
    /// Of data sets and their stores, in the same order.
    pub(super) fn new(seed: u64, datasets: Vec<Arc<Dataset>>, stores: Vec<VectorStore>) -> Self {
        let weights = |data: &Arc<Dataset>| data.columns().iter().map(|column| column.weight).collect();
        Self { seed, weights: datasets.iter().map(weights).collect(), datasets, stores }
    }

    /// The vectors' width.
    pub(super) fn width(&self) -> usize {
        self.stores.first().map_or(0, VectorStore::width)
    }

    /// The vectors of samples, one after the other.
    ///
    /// # Errors
    /// When one is missing, cannot be read or is damaged.
    pub(super) fn of(&self, samples: &[SampleRequest]) -> Result<Vec<bf16>, TrainerError> {
        let mut numbers = vec![bf16::ZERO; samples.len() * self.width()];
        for (sample, out) in samples.iter().zip(numbers.chunks_exact_mut(self.width().max(1))) {
            let (store, column) = self.place(*sample);
            if !store.read(sample.index.0, &column, out)? {
                let index = sample.index;
                return Err(TrainerError::Plan(format!(
                    "the embedding store has no vector of sample {index}, caption column `{column}`"
                )));
            }
        }
        Ok(numbers)
    }

    fn place(&self, SampleRequest { source, index, epoch }: SampleRequest) -> (&VectorStore, String) {
        let data = source as usize;
        let column = sampler::choose_caption(self.seed, source, index, epoch, &self.weights[data]);
        (&self.stores[data], nth(&self.datasets[data].columns()[column].name, 0))
    }
}

impl Beside for CaptionVectors {
    fn storage(&self) -> Option<Arc<Storage>> {
        self.stores.iter().find_map(VectorStore::object_storage).cloned()
    }

    fn blocks(&self, sample: SampleRequest, each: &mut dyn FnMut(Block)) -> Result<(), DataError> {
        let (store, column) = self.place(sample);
        store.blocks(sample.index.0, &column, each);
        Ok(())
    }
}
