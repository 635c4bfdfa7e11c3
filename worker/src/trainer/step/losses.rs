//! The losses of stage 2 over all ranks' rows: what is gathered for them, in which order, and what they leave.

use super::{Cut, LossSettings};
use crate::{
    collective::Collective,
    objective::{Repeats, clip, distillation, sigmoid},
    trainer::{
        error::TrainerError,
        timeline::{Section, Timeline},
    },
};
use tch::{Kind, Tensor};

/// What is made of the cosines of two towers' rows, and the scalars that are trained for it.
#[derive(Debug, Clone, Copy)]
pub struct Pairing<'a> {
    /// ln s, of the factor on cosines: a scalar variable of the parameters.
    pub log_scale: &'a Tensor,
    /// The loss.
    pub loss: PairLoss<'a>,
    /// What holds images' rows to a teacher's; absent for nothing.
    pub distillation: Option<Distillation>,
}

/// How much a teacher of images counts; see `objective::distillation`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distillation {
    /// The factor on its loss.
    pub weight: f64,
    /// The number of rows that its sums are scaled to.
    pub rows: f64,
}

/// A loss over a global batch of pairs.
#[derive(Debug, Clone, Copy)]
pub enum PairLoss<'a> {
    /// CLIP's, symmetric over rows and columns.
    Softmax {
        /// ε, 0 for none.
        label_smoothing: f64,
    },
    /// SigLIP's, of each two by themselves.
    Sigmoid {
        /// b, added to every logit: a scalar variable of the parameters.
        bias: &'a Tensor,
    },
}

impl<'a> Pairing<'a> {
    /// CLIP's loss.
    pub fn softmax(log_scale: &'a Tensor) -> Self {
        Self { log_scale, loss: PairLoss::Softmax { label_smoothing: 0.0 }, distillation: None }
    }

    /// The logit bias, where the loss has one.
    pub fn bias(&self) -> Option<&'a Tensor> {
        if let PairLoss::Sigmoid { bias } = self.loss { Some(bias) } else { None }
    }

    /// The loss over all ranks' rows, and the gradients of the own ones. The scalars' are added to theirs as autograd would.
    ///
    /// # Errors
    /// When a peer fails.
    pub(super) fn evaluate(
        &self,
        local: &Local,
        cut: Cut<'_>,
        collective: &dyn Collective,
        settings: LossSettings,
        timeline: &mut Timeline,
    ) -> Result<Loss, TrainerError> {
        // As wide as what is summed over rows.
        let kind = if local.image_RD.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let scale = self.log_scale.detach().exp().to_kind(kind);
        let (loss, bias) = match self.loss {
            PairLoss::Softmax { label_smoothing } => {
                let how = How { scale: &scale, smoothing: label_smoothing, settings };
                (softmax(local, cut, collective, how, timeline)?, None)
            }
            PairLoss::Sigmoid { bias } => {
                let number = bias.detach().to_kind(kind);
                let (loss, gradient) = sigmoid(local, cut, collective, (&scale, &number, settings), timeline)?;
                (loss, Some(bias * gradient.to_kind(bias.kind())))
            }
        };
        // dL/d(log s) = s · dL/ds.
        let scalars = self.log_scale * (&loss.scale * &scale).to_kind(self.log_scale.kind());
        let scalars = match bias {
            None => scalars,
            Some(bias) => scalars + bias,
        };
        // They are not where nobody trains them.
        if scalars.requires_grad() {
            scalars.backward();
        }
        match (self.distillation, &local.teacher_RD) {
            (Some(how), Some(teacher_RD)) => {
                distil(loss, (&local.image_RD, teacher_RD), cut, collective, (how, settings), timeline)
            }
            _ => Ok(loss),
        }
    }
}

/// The embeddings of the local slice without a gradient, in the kind that the towers compute in: so they travel.
pub(super) struct Local {
    pub(super) image_RD: Tensor,
    pub(super) text_RD: Tensor,
    /// The teacher's of the images, where there is one.
    pub(super) teacher_RD: Option<Tensor>,
}

/// What the loss leaves: its value, and the gradients of the local rows.
pub(super) struct Loss {
    pub(super) total: Tensor,
    pub(super) image_RD: Tensor,
    pub(super) text_RD: Tensor,
    /// Of the scale, this rank's part.
    scale: Tensor,
}

/// What the softmax loss is told.
#[derive(Clone, Copy)]
struct How<'a> {
    scale: &'a Tensor,
    smoothing: f64,
    settings: LossSettings,
}

fn softmax(
    local: &Local,
    Cut { rows, repeats, .. }: Cut<'_>,
    collective: &dyn Collective,
    how: How<'_>,
    timeline: &mut Timeline,
) -> Result<Loss, TrainerError> {
    fn side<'a>(
        own_RD: &'a Tensor,
        targets_BD: &'a Tensor,
        (how, first, repeats): (How<'a>, i64, &'a Repeats),
    ) -> clip::Side<'a> {
        let How { scale, smoothing, settings: LossSettings { tile, .. } } = how;
        clip::Side { own_RD, targets_BD, scale, first, tile, repeats, smoothing }
    }
    let rank = collective.rank().0 as usize;
    let (settings, smooth) = (how.settings, how.smoothing > 0.0);
    let how = (how, rows[..rank].iter().sum(), repeats);
    let bytes =
        2 * rows.iter().sum::<i64>() * local.image_RD.size()[1] * local.image_RD.kind().elt_size_in_bytes() as i64;

    let text_BD = collective.all_gather_rows(&local.text_RD, rows)?;
    timeline.lap(Section::Gather);
    let lse_image_R = side(&local.image_RD, &text_BD, how).lse();
    let mean_image_R = smooth.then(|| side(&local.image_RD, &text_BD, how).mean_logits());
    let kept = (bytes <= settings.kept_bytes).then_some(text_BD);
    timeline.lap(Section::Loss);
    let image_BD = collective.all_gather_rows(&local.image_RD, rows)?;
    timeline.lap(Section::Gather);
    let lse_text_R = side(&local.text_RD, &image_BD, how).lse();
    let mut own_R = clip::own_logits(&local.image_RD, &local.text_RD, how.0.scale);
    if let Some(mean_image_R) = mean_image_R {
        let mean_text_R = side(&local.text_RD, &image_BD, how).mean_logits();
        own_R = clip::smoothed(&own_R, [&mean_image_R, &mean_text_R], how.0.smoothing);
    }
    timeline.lap(Section::Loss);
    let statistics_B3 = collective.all_gather_rows(&Tensor::stack(&[lse_image_R, lse_text_R, own_R], 1), rows)?;
    timeline.lap(Section::Gather);
    let (lse_image_B, lse_text_B) = (statistics_B3.select(1, 0), statistics_B3.select(1, 1));
    let (text_RD, _) = side(&local.text_RD, &image_BD, how).gradient(&lse_text_B, &lse_image_B);
    drop(image_BD);
    timeline.lap(Section::Loss);
    let text_BD = match kept {
        Some(text_BD) => text_BD,
        None => collective.all_gather_rows(&local.text_RD, rows)?,
    };
    timeline.lap(Section::Gather);
    let (image_RD, scale) = side(&local.image_RD, &text_BD, how).gradient(&lse_image_B, &lse_text_B);
    timeline.lap(Section::Loss);
    Ok(Loss { total: clip::loss(&statistics_B3), image_RD, text_RD, scale })
}

/// The loss, and this rank's part of the bias's gradient.
fn sigmoid(
    local: &Local,
    Cut { rows, repeats, .. }: Cut<'_>,
    collective: &dyn Collective,
    (scale, bias, settings): (&Tensor, &Tensor, LossSettings),
    timeline: &mut Timeline,
) -> Result<(Loss, Tensor), TrainerError> {
    let first = rows[..collective.rank().0 as usize].iter().sum();
    let mut evaluate = |own_RD: &Tensor, others_RD: &Tensor| {
        let targets_BD = &collective.all_gather_rows(others_RD, rows)?;
        timeline.lap(Section::Gather);
        let side = sigmoid::Side { own_RD, targets_BD, scale, bias, first, tile: settings.tile, repeats };
        let found = side.evaluate();
        timeline.lap(Section::Loss);
        Ok::<_, TrainerError>(found)
    };
    let image = evaluate(&local.image_RD, &local.text_RD)?;
    let text = evaluate(&local.text_RD, &local.image_RD)?;
    let loss_B = collective.all_gather_rows(&image.loss_R, rows)?;
    timeline.lap(Section::Gather);
    let total = loss_B.mean(None::<Kind>);
    Ok((Loss { total, image_RD: image.rows_RD, text_RD: text.rows_RD, scale: image.scale }, image.bias))
}

/// Adds what a teacher says of the images.
fn distil(
    loss: Loss,
    rows: (&Tensor, &Tensor),
    cut: Cut<'_>,
    collective: &dyn Collective,
    (how, settings): (Distillation, LossSettings),
    timeline: &mut Timeline,
) -> Result<Loss, TrainerError> {
    let (added, gradient_RD) = distilled(rows, cut, collective, (how.rows, settings), timeline)?;
    let total = loss.total + added * how.weight;
    let image_RD = loss.image_RD + gradient_RD * how.weight;
    Ok(Loss { total, image_RD, ..loss })
}

/// The loss of all ranks' rows against their teacher's, its sums scaled to `n` rows, and the gradient of the own ones.
pub(super) fn distilled(
    (own_RD, teacher_RD): (&Tensor, &Tensor),
    Cut { rows, .. }: Cut<'_>,
    collective: &dyn Collective,
    (n, settings): (f64, LossSettings),
    timeline: &mut Timeline,
) -> Result<(Tensor, Tensor), TrainerError> {
    let first = rows[..collective.rank().0 as usize].iter().sum();
    let all_BD = &collective.all_gather_rows(own_RD, rows)?;
    let teacher_BD = &collective.all_gather_rows(teacher_RD, rows)?;
    timeline.lap(Section::Gather);
    let side = distillation::Side { own_RD, teacher_RD, all_BD, teacher_BD, first, tile: settings.tile, rows: n };
    let (added_R, gradient_RD) = side.evaluate();
    timeline.lap(Section::Loss);
    let added_B = collective.all_gather_rows(&added_R, rows)?;
    timeline.lap(Section::Gather);
    Ok((distillation::loss(&added_B), gradient_RD))
}
