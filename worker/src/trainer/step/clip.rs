//! The step of stage 2 over the global batch: encode in chunks, gather, stream the loss, backward, reduce, update.

use super::{Cut, LossSettings, StepBegun, StepSettings, gradcache::GradCache, normalise, update};
use crate::{
    collective::Collective,
    objective::{
        Repeats,
        clip::{Side, loss, own_logits},
    },
    trainer::{
        error::TrainerError,
        parameters::FlatParameters,
        timeline::{Section, Timeline},
    },
};
use tch::{Kind, Tensor};

/// Two towers over a local slice that was cut into chunks.
pub trait PairEncoder {
    /// Image and text embeddings [c, D] of a chunk, not normalised. Called again for the same chunk, it gives the same:
    /// an encoder that draws random numbers seeds them by the chunk.
    fn encode(&self, chunk: usize) -> (Tensor, Tensor);
}

/// A chunk's normalised embeddings, and the kind that the towers compute in.
struct Encoded {
    image: Tensor,
    text: Tensor,
    kind: Kind,
}

fn encode(encoder: &dyn PairEncoder, chunk: usize) -> Encoded {
    let (image, text) = encoder.encode(chunk);
    Encoded { kind: image.kind(), image: normalise(&image), text: normalise(&text) }
}

/// The embeddings of the local slice without a gradient, in the kind that the towers compute in: so they travel.
struct Local {
    image_RD: Tensor,
    text_RD: Tensor,
}

impl Local {
    fn of(chunks: &[Encoded]) -> Self {
        let rows = |part: fn(&Encoded) -> &Tensor| {
            let all: Vec<Tensor> = chunks.iter().map(|chunk| part(chunk).detach().to_kind(chunk.kind)).collect();
            Tensor::cat(&all, 0)
        };
        Self { image_RD: rows(|chunk| &chunk.image), text_RD: rows(|chunk| &chunk.text) }
    }
}

/// What the loss leaves: its value, and the gradients of the local rows.
struct Loss {
    total: Tensor,
    image_RD: Tensor,
    text_RD: Tensor,
    /// Of the scale, this rank's part.
    scale: Tensor,
}

/// The loss over all ranks' rows.
fn contrast(
    local: &Local,
    Cut { rows, repeats, .. }: Cut<'_>,
    collective: &dyn Collective,
    (scale, settings): (&Tensor, LossSettings),
    timeline: &mut Timeline,
) -> Result<Loss, TrainerError> {
    type How<'a> = (&'a Tensor, i64, i64, &'a Repeats);
    fn side<'a>(own_RD: &'a Tensor, targets_BD: &'a Tensor, (scale, first, tile, repeats): How<'a>) -> Side<'a> {
        Side { own_RD, targets_BD, scale, first, tile, repeats }
    }
    let rank = collective.rank().0 as usize;
    let how = (scale, rows[..rank].iter().sum(), settings.tile, repeats);
    let bytes =
        2 * rows.iter().sum::<i64>() * local.image_RD.size()[1] * local.image_RD.kind().elt_size_in_bytes() as i64;

    let text_BD = collective.all_gather_rows(&local.text_RD, rows)?;
    timeline.lap(Section::Gather);
    let lse_image_R = side(&local.image_RD, &text_BD, how).lse();
    let kept = (bytes <= settings.kept_bytes).then_some(text_BD);
    timeline.lap(Section::Loss);
    let image_BD = collective.all_gather_rows(&local.image_RD, rows)?;
    timeline.lap(Section::Gather);
    let lse_text_R = side(&local.text_RD, &image_BD, how).lse();
    let own_R = own_logits(&local.image_RD, &local.text_RD, scale);
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
    Ok(Loss { total: loss(&statistics_B3), image_RD, text_RD, scale })
}

/// Loss and gradients of the global batch, the gradients summed over ranks and left in `parameters`.
///
/// The scale is exp(`log_scale`), a variable of `parameters`. Returns the loss as a scalar tensor.
///
/// # Errors
/// When a peer fails.
pub fn accumulate(
    encoder: &dyn PairEncoder,
    cut: Cut<'_>,
    collective: &dyn Collective,
    parameters: &mut FlatParameters,
    log_scale: &Tensor,
    settings: LossSettings,
    timeline: &mut Timeline,
) -> Result<Tensor, TrainerError> {
    parameters.zero_grad();
    let rank = collective.rank().0 as usize;
    let sizes = cut.sizes;
    assert_eq!(Some(&sizes.iter().sum()), cut.rows.get(rank), "the chunks are the rank's rows");

    let encode = |chunk: usize| encode(encoder, chunk);
    let (cache, local) = GradCache::first_pass(sizes.len(), &encode, Local::of);
    timeline.lap(Section::Encode);

    let scale = log_scale.detach().exp().to_kind(if local.image_RD.kind() == Kind::Double {
        Kind::Double
    } else {
        Kind::Float
    });
    let Loss { total, image_RD, text_RD, scale: ds } = contrast(&local, cut, collective, (&scale, settings), timeline)?;
    drop(local);
    // dL/d(log s) = s · dL/ds; added as autograd would add it.
    (log_scale * (ds * &scale).to_kind(log_scale.kind())).backward();
    timeline.lap(Section::Loss);

    let image_parts = image_RD.split_with_sizes(sizes, 0);
    let text_parts = text_RD.split_with_sizes(sizes, 0);
    let scalar = |Encoded { image, text, .. }: &Encoded, chunk: usize| {
        (image * &image_parts[chunk]).sum(image.kind()) + (text * &text_parts[chunk]).sum(text.kind())
    };
    cache.second_pass(scalar, parameters, collective, timeline)?;
    Ok(total)
}

/// Begins one whole step; on the CPU it is done then. See [`accumulate`] for the other arguments.
///
/// # Errors
/// When a peer fails, or libtorch refuses.
pub fn clip_step(
    encoder: &dyn PairEncoder,
    cut: Cut<'_>,
    collective: &dyn Collective,
    parameters: &mut FlatParameters,
    log_scale: &Tensor,
    settings: &StepSettings,
    mut timeline: Timeline,
) -> Result<StepBegun, TrainerError> {
    let total = accumulate(encoder, cut, collective, parameters, log_scale, settings.loss, &mut timeline)?;
    update(&total, Some(log_scale), parameters, collective, settings, timeline)
}
