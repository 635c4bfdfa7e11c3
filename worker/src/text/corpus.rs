//! Texts by number, for `mntp`: documents, or a caption of each image.

use crate::data::{DataError, Dataset, Documents};
use common::{
    ids::{Epoch, SampleIndex},
    sampler,
};
use std::sync::Arc;

/// Texts by number.
#[derive(Debug)]
pub enum Corpus {
    /// The rows of a table.
    Documents(Documents),
    /// One caption of each image, drawn by the columns' weights once for all epochs, as in the reference (`Wiki1M_cc3m.py`).
    Captions {
        /// The data set.
        data: Arc<Dataset>,
        /// The recipe's seed.
        seed: u64,
        /// The data set's place in the stage's `data`.
        source: u32,
    },
}

impl Corpus {
    /// How many texts there are.
    pub fn len(&self) -> u64 {
        match self {
            Self::Documents(documents) => documents.len(),
            Self::Captions { data, .. } => data.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// BLAKE3 in hex of what the texts are made of.
    pub fn fingerprint(&self) -> String {
        match self {
            Self::Documents(documents) => documents.fingerprint().to_owned(),
            Self::Captions { data, .. } => data.fingerprint(),
        }
    }

    /// A text.
    ///
    /// # Panics
    /// When there is no such text.
    pub fn text(&self, number: u64) -> Result<String, DataError> {
        match self {
            Self::Documents(documents) => documents.text(number),
            Self::Captions { data, seed, source } => {
                let weights: Vec<u32> = data.columns().iter().map(|column| column.weight).collect();
                let sample = SampleIndex(number);
                let column = sampler::choose_caption(*seed, *source, sample, Epoch(0), &weights);
                data.caption(sample, column)
            }
        }
    }
}
