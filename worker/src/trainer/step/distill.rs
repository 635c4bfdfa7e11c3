//! The step of `distill`: rows are drawn to their teacher's, and as far from each other as the teacher's are, over the rows of all
//! ranks; in chunks by GradCache, as for `clip`.

use super::{Cut, LossSettings, StepBegun, StepSettings, gradcache::GradCache, losses::distilled, normalise, update};
use crate::{
    collective::Collective,
    trainer::{
        error::TrainerError,
        parameters::FlatParameters,
        timeline::{Section, Timeline},
    },
};
use tch::{Kind, Tensor};

/// A network over a local slice that was cut into chunks, and its teacher.
pub trait TaughtEncoder {
    /// What the network makes of a chunk: [c, D], not normalised. Called again for the same chunk, it gives the same.
    fn encode(&self, chunk: usize) -> Tensor;

    /// What the teacher makes of a chunk: [c, D], not normalised. Asked for once.
    fn teach(&self, chunk: usize) -> Tensor;
}

/// A chunk's normalised rows, and the kind that the network computes in.
struct Encoded {
    rows: Tensor,
    kind: Kind,
}

fn encode(encoder: &dyn TaughtEncoder, chunk: usize) -> Encoded {
    let rows = encoder.encode(chunk);
    Encoded { kind: rows.kind(), rows: normalise(&rows) }
}

/// Loss and gradients of the global batch, the gradients summed over ranks and left in `parameters`; the loss's sums are scaled to `n`
/// rows. Returns the loss as a scalar tensor.
///
/// # Errors
/// When a peer fails.
pub fn accumulate(
    encoder: &dyn TaughtEncoder,
    cut: Cut<'_>,
    n: f64,
    collective: &dyn Collective,
    parameters: &mut FlatParameters,
    settings: LossSettings,
    timeline: &mut Timeline,
) -> Result<Tensor, TrainerError> {
    parameters.zero_grad();
    let sizes = cut.sizes;
    let own = cut.rows.get(collective.rank().0 as usize);
    assert_eq!(Some(&sizes.iter().sum()), own, "the chunks are the rank's rows");

    let encode = |chunk: usize| encode(encoder, chunk);
    // In the kind in which they travel.
    let local = |chunks: &[Encoded]| {
        let rows: Vec<Tensor> = chunks.iter().map(|chunk| chunk.rows.detach().to_kind(chunk.kind)).collect();
        Tensor::cat(&rows, 0)
    };
    let (cache, rows_RD) = GradCache::first_pass(sizes.len(), &encode, local);
    let teach = |chunk| normalise(&encoder.teach(chunk)).to_kind(rows_RD.kind());
    let teacher_RD = tch::no_grad(|| Tensor::cat(&(0..sizes.len()).map(teach).collect::<Vec<_>>(), 0));
    timeline.lap(Section::Encode);
    let (total, gradient_RD) = distilled((&rows_RD, &teacher_RD), cut, collective, (n, settings), timeline)?;
    drop((rows_RD, teacher_RD));

    let parts = gradient_RD.split_with_sizes(sizes, 0);
    let scalar = |Encoded { rows, .. }: &Encoded, chunk: usize| (rows * &parts[chunk]).sum(rows.kind());
    cache.second_pass(scalar, parameters, collective, timeline)?;
    Ok(total)
}

/// Begins one whole step; on the CPU it is done then. See [`accumulate`] for the other arguments.
///
/// # Errors
/// When a peer fails, or libtorch refuses.
pub fn distill_step(
    encoder: &dyn TaughtEncoder,
    cut: Cut<'_>,
    n: f64,
    collective: &dyn Collective,
    parameters: &mut FlatParameters,
    settings: &StepSettings,
    mut timeline: Timeline,
) -> Result<StepBegun, TrainerError> {
    let total = accumulate(encoder, cut, n, collective, parameters, settings.loss, &mut timeline)?;
    update(&total, None, parameters, collective, settings, timeline)
}
