//! The head of a language model: hidden states to logits over the vocabulary.

use super::Llama;
use crate::model::{ModelError, config, weights};
use common::recipe::Init;
use serde::Deserialize;
use std::path::Path;
use tch::Tensor;

const NAME: &str = "lm_head.weight";

// What of `config.json` concerns the head.
#[derive(Deserialize)]
struct Tie {
    #[serde(default)]
    tie_word_embeddings: bool,
}

/// The head; it is never trained, unless it is the token table itself and that is.
#[derive(Debug)]
pub struct Head {
    /// [vocabulary, D].
    weight: Tensor,
    tied: bool,
}

impl Head {
    /// The head of the model folder: the token table where the two are tied, as always with random weights.
    ///
    /// # Errors
    /// When the folder has the body alone.
    pub fn open(llama: &Llama, folder: &Path, init: Init) -> Result<Self, ModelError> {
        let table = llama.token_table();
        let Tie { tie_word_embeddings } = config::read(folder)?;
        if init == Init::Random || tie_word_embeddings {
            return Ok(Self { weight: table.shallow_clone(), tied: true });
        }
        let found = weights::tensor(folder, NAME)?.ok_or_else(|| ModelError::NoHead { folder: folder.to_owned() })?;
        if found.size() != table.size() {
            let (path, name) = (folder.to_owned(), NAME.to_owned());
            return Err(ModelError::Shape { path, name, found: found.size(), expected: table.size() });
        }
        Ok(Self { weight: found.to_device(table.device()).to_kind(table.kind()), tied: false })
    }

    /// Logits [M, vocabulary] of hidden states [M, D], in their kind.
    pub fn forward(&self, hidden_MD: &Tensor) -> Tensor {
        hidden_MD.linear(&self.weight.to_kind(hidden_MD.kind()), None::<&Tensor>)
    }

    /// Floating-point operations for so many hidden states.
    pub fn flops(&self, states: i64) -> f64 {
        2.0 * (states * self.weight.numel() as i64) as f64
    }

    /// The head's own tensor by its name in a language model; absent when it is the token table.
    pub fn own(&self) -> Option<(&'static str, &Tensor)> {
        (!self.tied).then_some((NAME, &self.weight))
    }
}
