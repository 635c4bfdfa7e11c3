//! One optimizer step over the global batch, a stage a file: encode in chunks, gather, stream the loss, backward, reduce; and
//! what all of them end with, the update.

pub mod clip;
pub mod contrast;
pub mod distill;
mod gradcache;
mod losses;
pub mod mntp;

pub use losses::{Distillation, PairLoss, Pairing};

use super::{
    error::TrainerError,
    parameters::FlatParameters,
    timeline::{Section, Span, StepTimes, Timeline},
};
use crate::{
    collective::Collective,
    objective::Repeats,
    torch::{shim::AdamW, transfer::Fetch},
};
use serde::{Deserialize, Serialize};
use std::{fmt, rc::Rc, time::Duration};
use tch::{Kind, Tensor};

/// The largest logit scale's logarithm: exp of it is 100 (Radford et al. 2021, section 2.5).
const LARGEST_LOG_SCALE: f64 = 4.605_170_185_988_092;

/// Settings of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSettings {
    /// Which update this is, from 1.
    pub step: u64,
    /// The learning rate.
    pub learning_rate: f64,
    /// AdamW's decay rates.
    pub betas: (f64, f64),
    /// AdamW's epsilon.
    pub eps: f64,
    /// The largest gradient norm; absent means that gradients are not clipped.
    pub clip_norm: Option<f64>,
    /// Whether the device holds back an update of a loss or a gradient norm that is not finite: what is trained and its
    /// moments stay as they were. The schedule and AdamW's bias correction count steps, these among them.
    pub skip_nonfinite: bool,
    /// How the loss is computed.
    pub loss: LossSettings,
}

/// What the loss takes of memory: nothing here changes its value but by rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LossSettings {
    /// Rows and columns of the logits that are computed at a time.
    pub tile: i64,
    /// Both towers' gathered rows are kept through the loss while they take no more bytes than this; beyond it they are in
    /// memory one after the other, and the first is gathered once more.
    pub kept_bytes: i64,
}

impl Default for LossSettings {
    fn default() -> Self {
        Self { tile: 4096, kept_bytes: 512 << 20 }
    }
}

/// How a global batch is cut, and what stands in it twice.
#[derive(Debug, Clone, Copy)]
pub struct Cut<'a> {
    /// The local chunks' pairs; at least one chunk.
    pub sizes: &'a [i64],
    /// Every rank's pairs.
    pub rows: &'a [i64],
    /// Places of the same sample.
    pub repeats: &'a Repeats,
}

/// What of a step was NaN or infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NonFinite {
    /// The loss.
    Loss,
    /// The norm of the gradients.
    GradNorm,
    /// Both of them.
    Both,
}

impl fmt::Display for NonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loss => "the loss",
            Self::GradNorm => "the gradient norm",
            Self::Both => "the loss and the gradient norm",
        })
    }
}

/// What a step says, once it is done.
#[derive(Debug)]
pub struct StepOutput {
    /// Mean over the global batch, before the update.
    pub loss: f64,
    /// The gradients' norm before clipping.
    pub grad_norm: f64,
    /// exp of the logit scale, after the update; absent when none is trained.
    pub logit_scale: Option<f64>,
    /// The logit bias, after the update; absent when none is trained.
    pub logit_bias: Option<f64>,
    /// Whether no collective failed on the way; the parameters are as they were if one did.
    pub updated: bool,
    /// Where the time went.
    pub times: StepTimes,
    /// The same, in order.
    pub spans: Vec<Span>,
    /// The same, to be held against another step's.
    pub timeline: Rc<Timeline>,
}

impl StepOutput {
    /// What is no finite number of it; every rank has the same. With [`StepSettings::skip_nonfinite`] nothing was updated then.
    pub fn nonfinite(&self) -> Option<NonFinite> {
        match (self.loss.is_finite(), self.grad_norm.is_finite()) {
            (true, true) => None,
            (false, true) => Some(NonFinite::Loss),
            (true, false) => Some(NonFinite::GradNorm),
            (false, false) => Some(NonFinite::Both),
        }
    }

    /// How long it took, the wait for its data included.
    pub fn length(&self) -> Duration {
        self.spans.last().map_or(Duration::ZERO, |span| span.start + span.length)
    }

    /// How long after the end of an earlier step it ended.
    ///
    /// # Errors
    /// When the device has not passed both.
    pub fn ended_after(&self, earlier: &Self) -> Result<Duration, TrainerError> {
        let end = self.timeline.began_after(&earlier.timeline)? + self.length();
        Ok(end.saturating_sub(earlier.length()))
    }
}

/// A step that was begun. On a GPU it is computed while the host goes on.
#[derive(Debug)]
pub struct StepBegun {
    figures: Fetch,
    scaled: bool,
    biased: bool,
    timeline: Timeline,
}

impl StepBegun {
    /// Waits until it is done.
    ///
    /// # Errors
    /// When the device failed.
    pub fn wait(self) -> Result<StepOutput, TrainerError> {
        let figures = self.figures.wait()?;
        let spans = self.timeline.spans()?;
        let mut times = StepTimes::default();
        spans.iter().for_each(|span| times.add(span.section, span.length));
        let [loss, grad_norm, logit_scale, logit_bias, lost] = figures[..] else { unreachable!("five were asked for") };
        let logit_scale = self.scaled.then_some(logit_scale);
        let logit_bias = self.biased.then_some(logit_bias);
        Ok(StepOutput {
            loss,
            grad_norm,
            logit_scale,
            logit_bias,
            updated: lost == 0.0,
            times,
            spans,
            timeline: Rc::new(self.timeline),
        })
    }
}

/// Normalised rows: L2 norm 1 along the last dimension, in fp32 at least.
pub fn normalise(x_BD: &Tensor) -> Tensor {
    let x_BD = if x_BD.kind() == Kind::Double { x_BD.shallow_clone() } else { x_BD.to_kind(Kind::Float) };
    let norm_B1 = x_BD.norm_scalaropt_dim(2.0, [-1i64], true).clamp_min(1e-12);
    x_BD / norm_B1
}

/// Updates the parameters with the gradients that are summed in them, and fetches the figures of the step: `loss` is the mean
/// over the global batch, the scalars of `pairing` are variables of the parameters.
fn update(
    loss: &Tensor,
    pairing: Option<Pairing<'_>>,
    parameters: &mut FlatParameters,
    collective: &dyn Collective,
    settings: &StepSettings,
    mut timeline: Timeline,
) -> Result<StepBegun, TrainerError> {
    let norm = parameters.clip(collective, settings.clip_norm)?;
    // An update with the sum of a collective that died is one that no peer has: the device itself holds it back.
    let lost = collective.lost()?;
    let held = match (&lost, settings.skip_nonfinite) {
        (Some(lost), false) => Some(lost.shallow_clone()),
        (None, false) => None,
        (Some(lost), true) => Some(lost.maximum(&nonfinite(loss, &norm))),
        (None, true) => Some(nonfinite(loss, &norm)),
    };
    let constants = AdamW {
        step: settings.step,
        learning_rate: settings.learning_rate,
        betas: settings.betas,
        weight_decay: 0.0,
        eps: settings.eps,
    };
    parameters.update(collective, held.as_ref(), &constants)?;
    let scale = match pairing {
        None => loss.zeros_like(),
        Some(Pairing { log_scale, .. }) => {
            let _ = tch::no_grad(|| log_scale.shallow_clone().clamp_(0.0, LARGEST_LOG_SCALE));
            log_scale.detach().exp()
        }
    };
    // After the clamp: of what the next step begins with.
    parameters.update_average(held.as_ref());
    let bias = pairing.and_then(|pairing| pairing.bias());
    timeline.lap(Section::Optimizer);
    let number = |bias: Option<&Tensor>| bias.map_or_else(|| loss.zeros_like(), Tensor::detach);
    let lost = lost.unwrap_or_else(|| loss.zeros_like());
    let figures = Fetch::begin(&[loss, &norm, &scale, &number(bias), &lost])?;
    Ok(StepBegun { figures, scaled: pairing.is_some(), biased: bias.is_some(), timeline })
}

/// A float scalar on the device: 1 when one of the two is no finite number, else 0. All ranks have the same two: the loss is of
/// what was gathered from all, the norm of what was summed over all.
fn nonfinite(loss: &Tensor, norm: &Tensor) -> Tensor {
    loss.isfinite().logical_and(&norm.isfinite()).logical_not().to_kind(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn output() -> StepOutput {
        let mut timeline = Timeline::begin(Device::Cpu);
        timeline.lap(Section::DataWait);
        // Work that takes a while.
        let x = Tensor::ones([200, 200], (Kind::Float, Device::Cpu));
        let loss = x.matmul(&x).sum(Kind::Float).double_value(&[]);
        timeline.lap(Section::Encode);
        let (spans, times, timeline) = (timeline.spans().unwrap(), StepTimes::default(), Rc::new(timeline));
        StepOutput { loss, grad_norm: 0.0, logit_scale: None, logit_bias: None, updated: true, times, spans, timeline }
    }

    #[test]
    fn the_times_of_steps_are_their_own_whenever_they_are_read_and_leave_no_gap() {
        let steps = [output(), output(), output()];
        let each: Vec<Duration> = steps.windows(2).map(|two| two[1].ended_after(&two[0]).unwrap()).collect();
        assert!(each.iter().zip(&steps[1..]).all(|(between, step)| *between >= step.length()));
        let whole = steps[2].timeline.began_after(&steps[0].timeline).unwrap() + steps[2].length();
        assert_eq!(steps[0].length() + each.iter().sum::<Duration>(), whole);
    }
}
