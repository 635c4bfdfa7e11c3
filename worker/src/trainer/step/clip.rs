//! The step of stage 2 over the global batch: encode in chunks, gather, stream the loss, backward, reduce, update.

use super::{
    Cut, LossSettings, StepBegun, StepSettings,
    gradcache::GradCache,
    losses::{Local, Loss, Pairing},
    normalise, update,
};
use crate::{
    collective::Collective,
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

    /// What a teacher makes of a chunk's images: [c, D], not normalised. Asked for once, where a distillation is.
    fn teach(&self, _chunk: usize) -> Option<Tensor> {
        None
    }
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

impl Local {
    fn of(chunks: &[Encoded]) -> Self {
        let rows = |part: fn(&Encoded) -> &Tensor| {
            let all: Vec<Tensor> = chunks.iter().map(|chunk| part(chunk).detach().to_kind(chunk.kind)).collect();
            Tensor::cat(&all, 0)
        };
        Self { image_RD: rows(|chunk| &chunk.image), text_RD: rows(|chunk| &chunk.text), teacher_RD: None }
    }
}

/// Loss and gradients of the global batch, the gradients summed over ranks and left in `parameters`.
///
/// The scalars of `pairing` are variables of `parameters`. Returns the loss as a scalar tensor.
///
/// # Errors
/// When a peer fails.
pub fn accumulate(
    encoder: &dyn PairEncoder,
    cut: Cut<'_>,
    collective: &dyn Collective,
    parameters: &mut FlatParameters,
    pairing: Pairing<'_>,
    settings: LossSettings,
    timeline: &mut Timeline,
) -> Result<Tensor, TrainerError> {
    parameters.zero_grad();
    let rank = collective.rank().0 as usize;
    let sizes = cut.sizes;
    assert_eq!(Some(&sizes.iter().sum()), cut.rows.get(rank), "the chunks are the rank's rows");

    let encode = |chunk: usize| encode(encoder, chunk);
    let (cache, mut local) = GradCache::first_pass(sizes.len(), &encode, Local::of);
    if pairing.distillation.is_some() {
        let teach = |chunk| encoder.teach(chunk).map(|rows| normalise(&rows).to_kind(local.image_RD.kind()));
        let taught: Option<Vec<Tensor>> = tch::no_grad(|| (0..sizes.len()).map(teach).collect());
        local.teacher_RD = taught.map(|rows| Tensor::cat(&rows, 0));
    }
    timeline.lap(Section::Encode);

    let Loss { total, image_RD, text_RD, .. } = pairing.evaluate(&local, cut, collective, settings, timeline)?;
    drop(local);
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
    pairing: Pairing<'_>,
    settings: &StepSettings,
    mut timeline: Timeline,
) -> Result<StepBegun, TrainerError> {
    let total = accumulate(encoder, cut, collective, parameters, pairing, settings.loss, &mut timeline)?;
    update(&total, Some(pairing), parameters, collective, settings, timeline)
}
