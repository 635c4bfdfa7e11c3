//! The vision tower's own average as its teacher: `self_distillation` of stage `clip`.

use super::towers::{TowerSettings, Towers};
use crate::trainer::{error::TrainerError, parameters::FlatParameters};
use common::recipe::Recipe;
use std::collections::HashMap;
use tch::Tensor;

/// A tower whose trained variables are the average, as it is at any time, and whose others are the student's own.
pub(super) struct Teacher(Towers);

impl Teacher {
    /// Of a student whose parameters keep a whole average. It takes no memory for weights.
    ///
    /// # Errors
    /// When the tower cannot be built again.
    pub(super) fn of(
        student: &Towers,
        parameters: &FlatParameters,
        recipe: &Recipe,
        settings: TowerSettings,
    ) -> Result<Self, TrainerError> {
        // It has no backward pass.
        let settings = TowerSettings { activation_checkpointing: false, ..settings };
        let towers = Towers::build(recipe, settings, student.store.device())?;
        let own: HashMap<String, Tensor> = student.variables().into_iter().collect();
        for (name, mut variable) in towers.variables() {
            let place = parameters.averaged(&name).or_else(|| own.get(&name).map(Tensor::detach));
            let place = place.expect("teacher and student are built alike");
            variable.f_set_data(&place)?;
            let _ = variable.set_requires_grad(false);
        }
        Ok(Self(towers))
    }

    /// What it makes of pixels, or of the patches `kept_BK` of them: [B, width], not normalised.
    pub(super) fn image_features(&self, pixels_BCHW: &Tensor, kept_BK: Option<&Tensor>) -> Tensor {
        tch::no_grad(|| self.0.image_features(pixels_BCHW, kept_BK))
    }
}
