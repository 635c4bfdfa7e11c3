//! One optimizer step of stage 2 over the global batch: encode in chunks, gather, stream the loss, backward, reduce,
//! update.
//!
//! With more than one chunk this is GradCache (Gao et al. 2021, "Scaling deep contrastive learning batch size under memory
//! limited setup"): a pass without gradients for the embeddings, then one with them, a chunk at a time.

use super::{error::TrainerError, parameters::FlatParameters};
use crate::{
    collective::Collective,
    objective::clip::{Pairs, gradients, loss, statistics},
    torch::shim::AdamW,
};
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

/// The largest logit scale's logarithm: exp of it is 100 (Radford et al. 2021, section 2.5).
const LARGEST_LOG_SCALE: f64 = 4.605_170_185_988_092;

/// Two towers over a local slice that was cut into chunks.
pub trait PairEncoder {
    /// Image and text embeddings [c, D] of a chunk, not normalised. Called again for the same chunk, it gives the same:
    /// an encoder that draws random numbers seeds them by the chunk.
    fn encode(&self, chunk: usize) -> (Tensor, Tensor);
}

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
    /// Columns of the logits that are computed at a time.
    pub tile: i64,
}

/// How long the parts of a step took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepTimes {
    /// Forward passes before the loss.
    pub encode: Duration,
    /// All-gathers of embeddings and statistics.
    pub gather: Duration,
    /// The loss and its gradients.
    pub loss: Duration,
    /// Backward passes, with their forward passes if there are several chunks.
    pub backward: Duration,
    /// All-reduce of gradients, as far as no backward pass hides it.
    pub reduce: Duration,
    /// Clipping and AdamW.
    pub optimizer: Duration,
}

impl StepTimes {
    /// In seconds, in the order of the fields.
    pub fn seconds(&self) -> [f64; 6] {
        [self.encode, self.gather, self.loss, self.backward, self.reduce, self.optimizer].map(|part| part.as_secs_f64())
    }
}

/// What a step says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutput {
    /// Mean over the global batch, before the update.
    pub loss: f64,
    /// The gradients' norm before clipping.
    pub grad_norm: f64,
    /// Where the time went.
    pub times: StepTimes,
}

/// Adds up where time goes.
struct Clock(Instant);

impl Clock {
    fn lap(&mut self, part: &mut Duration) {
        let now = Instant::now();
        *part += now - self.0;
        self.0 = now;
    }
}

/// Normalised rows: L2 norm 1 along the last dimension.
pub fn normalise(x_BD: &Tensor) -> Tensor {
    let x_BD = if x_BD.kind() == Kind::Double { x_BD.shallow_clone() } else { x_BD.to_kind(Kind::Float) };
    let norm_B1 = x_BD.norm_scalaropt_dim(2.0, [-1i64], true).clamp_min(1e-12);
    x_BD / norm_B1
}

fn encode(encoder: &dyn PairEncoder, chunk: usize) -> (Tensor, Tensor) {
    let (image, text) = encoder.encode(chunk);
    (normalise(&image), normalise(&text))
}

/// Loss and gradients of the global batch, the gradients summed over ranks and left in `parameters`.
///
/// `sizes` are the local chunks' pairs, at least one chunk, `rows` every rank's pairs; the scale is exp(`log_scale`), a variable of
/// `parameters`. Returns the loss as a scalar tensor.
///
/// # Errors
/// When a peer fails.
pub fn accumulate(
    encoder: &dyn PairEncoder,
    (sizes, rows): (&[i64], &[i64]),
    collective: &dyn Collective,
    parameters: &mut FlatParameters,
    log_scale: &Tensor,
    tile: i64,
    times: &mut StepTimes,
) -> Result<Tensor, TrainerError> {
    let mut clock = Clock(Instant::now());
    parameters.zero_grad();
    let local: i64 = sizes.iter().sum();
    let rank = collective.rank().0 as usize;
    assert_eq!(Some(&local), rows.get(rank), "the chunks are the rank's rows");

    let retained = (sizes.len() == 1).then(|| encode(encoder, 0));
    let (image_RD, text_RD) = match &retained {
        Some((image, text)) => (image.detach(), text.detach()),
        None => {
            let chunks = tch::no_grad(|| (0..sizes.len()).map(|chunk| encode(encoder, chunk)).collect::<Vec<_>>());
            let (image, text): (Vec<_>, Vec<_>) = chunks.into_iter().unzip();
            (Tensor::cat(&image, 0), Tensor::cat(&text, 0))
        }
    };
    clock.lap(&mut times.encode);

    let width = image_RD.size()[1];
    let both = collective.all_gather_rows(&Tensor::cat(&[&image_RD, &text_RD], 1), rows)?;
    let (image_BD, text_BD) = (both.narrow(1, 0, width).contiguous(), both.narrow(1, width, width).contiguous());
    clock.lap(&mut times.gather);

    let scale = log_scale.detach().exp().to_kind(image_BD.kind());
    let first = rows[..rank].iter().sum();
    let pairs = Pairs { image_BD: &image_BD, text_BD: &text_BD, scale: &scale, first, rows: local, tile };
    let own = statistics(&pairs);
    clock.lap(&mut times.loss);
    let statistics_B3 = collective.all_gather_rows(&own, rows)?;
    clock.lap(&mut times.gather);
    let total = loss(&statistics_B3);
    let gradient = gradients(&pairs, &statistics_B3);
    // dL/d(log s) = s · dL/ds; added as autograd would add it.
    (log_scale * (gradient.scale * &scale).to_kind(log_scale.kind())).backward();
    clock.lap(&mut times.loss);

    let image_parts = gradient.image_RD.split_with_sizes(sizes, 0);
    let text_parts = gradient.text_RD.split_with_sizes(sizes, 0);
    let backward = |chunk: usize| {
        let again = if retained.is_none() { Some(encode(encoder, chunk)) } else { None };
        let (image, text) = again.as_ref().or(retained.as_ref()).expect("one of the two was encoded");
        // The gradient of this scalar is the cached gradient, chained through the towers.
        ((image * &image_parts[chunk]).sum(None::<Kind>) + (text * &text_parts[chunk]).sum(None::<Kind>)).backward();
    };
    let last = sizes.len() - 1;
    (0..last).for_each(backward);
    // Every chunk adds to the same gradients: they are complete, and can be reduced, in the last one's pass alone.
    parameters.reduce_behind(collective, || backward(last), || clock.lap(&mut times.backward))?;
    clock.lap(&mut times.reduce);
    Ok(total)
}

/// One whole step. See [`accumulate`] for the arguments.
///
/// # Errors
/// When a peer fails, or libtorch refuses.
pub fn contrastive_step(
    encoder: &dyn PairEncoder,
    cut: (&[i64], &[i64]),
    collective: &dyn Collective,
    parameters: &mut FlatParameters,
    log_scale: &Tensor,
    settings: &StepSettings,
) -> Result<StepOutput, TrainerError> {
    let mut times = StepTimes::default();
    let total = accumulate(encoder, cut, collective, parameters, log_scale, settings.tile, &mut times)?;
    let mut clock = Clock(Instant::now());
    let norm = parameters.clip(settings.clip_norm);
    // An update with the sum of a collective that died is one that no peer has.
    collective.finish()?;
    parameters.update(&AdamW {
        step: settings.step,
        learning_rate: settings.learning_rate,
        betas: settings.betas,
        weight_decay: 0.0,
        eps: settings.eps,
    })?;
    let _ = tch::no_grad(|| log_scale.shallow_clone().clamp_(0.0, LARGEST_LOG_SCALE));
    let output = (total.double_value(&[]), norm.double_value(&[]));
    clock.lap(&mut times.optimizer);
    Ok(StepOutput { loss: output.0, grad_norm: output.1, times })
}
