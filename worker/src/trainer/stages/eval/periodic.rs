//! Evaluations during `clip`, between two steps: the weights as they are, over all ranks. The training is as it would be
//! without them: nothing is drawn, no gradient is kept, and the batches made ahead of it wait.

use super::{super::towers::Towers, figures::Figures, images::Pass, sets::Sets};
use crate::trainer::{context::Context, error::TrainerError};
use common::{
    ids::Step,
    recipe::PeriodicEval,
    sampler::Order,
    status::{Evaluated, Measured, Progress, Recall},
};

/// The evaluations of a `clip` stage.
pub struct Periodic<'a> {
    settings: &'a PeriodicEval,
    sets: Sets,
}

impl<'a> Periodic<'a> {
    /// Opens the data sets before the first step, so that what is wrong with them is told then. `text_width` is that of the
    /// vectors that are trained on.
    ///
    /// # Errors
    /// When data or vectors are missing or do not fit.
    pub fn open(settings: &'a PeriodicEval, text_width: usize, context: &Context<'_>) -> Result<Self, TrainerError> {
        let sets = Sets::open(&settings.data, context)?;
        if sets.width() != text_width {
            return Err(TrainerError::Plan(format!(
                "the text vectors of `stage.clip.eval.data` are {} numbers wide, and those that are trained on {text_width}: \
                 they must come from one encoder",
                sets.width()
            )));
        }
        Ok(Self { settings, sets })
    }

    /// Whether it is time after so many steps.
    pub fn is_due(&self, step: Step, order: &Order) -> bool {
        self.settings.every.is_due(step, order)
    }

    /// Evaluates; `standing` is what was last reported of the training.
    ///
    /// # Errors
    /// When a peer fails, or more images are broken than the recipe bears.
    pub fn measure(
        &self,
        towers: &Towers,
        standing: &Progress,
        context: &Context<'_>,
    ) -> Result<Vec<Evaluated>, TrainerError> {
        let told = |data: &str, done: u64, of: u64| {
            let activity = Some(format!("evaluating {data}, {done} of {of} batches"));
            context.report(Progress { activity, ..standing.clone() });
        };
        let pass = Pass { chunk: self.settings.chunk, told: &told };
        let step = standing.step;
        let mut found = Vec::new();
        for set in &self.sets.ranked {
            let figures = set.measure(towers, pass, context)?.figures;
            let both = figures.as_chunks::<2>().0.iter();
            found.extend(both.map(|[image_to_text, text_to_image]| Evaluated {
                step,
                data: image_to_text.data.clone(),
                measured: Measured::Retrieval {
                    captions: image_to_text.captions.clone(),
                    image_to_text: recall(image_to_text),
                    text_to_image: recall(text_to_image),
                },
            }));
        }
        for set in &self.sets.classified {
            let figures = set.measure(towers, pass, context)?.figures;
            found.extend(figures.into_iter().map(|figures| Evaluated {
                step,
                data: figures.data,
                measured: Measured::ZeroShot {
                    templates: figures.templates,
                    top_1: figures.top_1,
                    top_5: figures.top_5,
                },
            }));
        }
        Ok(found)
    }
}

fn recall(figures: &Figures) -> Recall {
    Recall { r1: figures.recall_at_1, r5: figures.recall_at_5, r10: figures.recall_at_10 }
}
