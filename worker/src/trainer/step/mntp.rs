//! The step of `mntp`: each chunk's loss by itself, as a part of the mean over all masked tokens of the global batch.

use super::{StepBegun, StepSettings, update};
use crate::{
    collective::Collective,
    trainer::{
        error::TrainerError,
        parameters::FlatParameters,
        timeline::{Section, Timeline},
    },
};
use tch::{Kind, Tensor};

/// Masked blocks of a local slice that was cut into chunks.
pub trait MaskedEncoder {
    /// How many chunks there are, at least one.
    fn chunks(&self) -> usize;
    /// Masked tokens of all chunks.
    fn masked(&self) -> i64;
    /// The summed loss of a chunk's masked tokens, a scalar.
    fn loss_sum(&self, chunk: usize) -> Tensor;
}

/// Loss and gradients of the global batch, the gradients summed over ranks and left in `parameters`. The loss is the mean over
/// the masked tokens of all ranks, not the mean of the ranks' means: so it does not depend on how many there are. Returns it as
/// a scalar tensor; 0 when nothing is masked.
///
/// # Errors
/// When a peer fails.
pub fn accumulate(
    encoder: &dyn MaskedEncoder,
    collective: &dyn Collective,
    parameters: &mut FlatParameters,
    timeline: &mut Timeline,
) -> Result<Tensor, TrainerError> {
    parameters.zero_grad();
    // Between hosts.
    let mut tokens = Tensor::from_slice(&[encoder.masked()]);
    collective.all_reduce_sum(&mut tokens)?;
    let tokens = tokens.int64_value(&[0]).max(1) as f64;
    timeline.lap(Section::Gather);
    let mut total: Option<Tensor> = None;
    let mut backward = |chunk: usize| {
        let loss = encoder.loss_sum(chunk) / tokens;
        loss.backward();
        let loss = loss.detach();
        total = Some(total.take().map_or_else(|| loss.shallow_clone(), |sum| sum + &loss));
    };
    let last = encoder.chunks() - 1;
    (0..last).for_each(&mut backward);
    parameters.reduce_behind(collective, || backward(last), || timeline.lap(Section::Backward))?;
    timeline.lap(Section::Reduce);
    let mut total = total.expect("there is at least one chunk").view([1]);
    collective.all_reduce_sum(&mut total)?;
    timeline.lap(Section::Gather);
    let kind = if total.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    Ok(total.to_kind(kind).squeeze())
}

/// Begins one whole step; on the CPU it is done then. See [`accumulate`] for the other arguments.
///
/// # Errors
/// When a peer fails, or libtorch refuses.
pub fn mntp_step(
    encoder: &dyn MaskedEncoder,
    collective: &dyn Collective,
    parameters: &mut FlatParameters,
    settings: &StepSettings,
    mut timeline: Timeline,
) -> Result<StepBegun, TrainerError> {
    let total = accumulate(encoder, collective, parameters, &mut timeline)?;
    update(&total, None, parameters, collective, settings, timeline)
}
