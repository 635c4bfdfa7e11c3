//! What tells one training from another.

use super::{Faults, Recipe};
use std::path::PathBuf;

impl Recipe {
    /// BLAKE3 of the recipe as JSON, without what changes no number: the output folder and the faults to bear.
    pub fn fingerprint(&self) -> String {
        let bare =
            Recipe { output: PathBuf::new(), faults: Faults { max_failures: 0, max_no_progress: 0 }, ..self.clone() };
        let json = serde_json::to_vec(&bare).expect("a recipe is JSON");
        blake3::hash(&json).to_string()
    }
}
