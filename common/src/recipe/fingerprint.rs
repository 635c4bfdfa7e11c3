//! What tells one training from another.

use super::{Detection, Faults, Recipe, Stage};
use std::path::PathBuf;

impl Recipe {
    /// BLAKE3 of the recipe as JSON, without what changes no number: the output folder, the place of checkpoints, the faults to bear, how
    /// many ranks there may be, the profile, the evaluations on the way.
    pub fn fingerprint(&self) -> String {
        let faults = Faults {
            max_failures: 0,
            max_no_progress: 0,
            storage_wait: super::storage_wait(),
            detect: Detection::default(),
        };
        let mut bare = Recipe { output: PathBuf::new(), checkpoints: None, faults, elastic: None, ..self.clone() };
        for stage in &mut bare.stages {
            if let Some(training) = stage.training_mut() {
                training.profile_steps = 0;
            }
            if let Stage::Clip(clip) = stage {
                clip.eval = None;
            }
        }
        let json = serde_json::to_vec(&bare).expect("a recipe is JSON");
        blake3::hash(&json).to_string()
    }
}
