//! The step of `contrast`: a query, what it seeks, and perhaps a text that it does not seek, against those of all ranks; in
//! chunks by GradCache, as for `clip`.

use super::{Cut, LossSettings, StepBegun, StepSettings, gradcache::GradCache, normalise, update};
use crate::{
    collective::Collective,
    objective::contrast::{How, Role, Targets, loss},
    trainer::{
        error::TrainerError,
        parameters::FlatParameters,
        timeline::{Section, Timeline},
    },
};
use tch::{Kind, Tensor};

/// The texts of a local slice that was cut into chunks.
pub trait TextEncoder {
    /// Vectors of a chunk's c queries, its c positives, and its c negatives if there are any: [2c or 3c, D], not normalised.
    /// Called again for the same chunk, it gives the same: an encoder that draws random numbers seeds them by the chunk.
    fn encode(&self, chunk: usize) -> Tensor;
}

/// What the loss is of, beside vectors.
#[derive(Debug, Clone, Copy)]
pub struct Contrast<'a> {
    /// The factor on cosines.
    pub scale: f64,
    /// [R] bool, own pairs that have no negative; absent when no pair of the stage has one.
    pub lacking_R: Option<&'a Tensor>,
}

impl Contrast<'_> {
    /// Texts of a pair.
    fn roles(&self) -> i64 {
        if self.lacking_R.is_some() { 3 } else { 2 }
    }
}

/// A chunk's normalised vectors, and the kind that the LLM computes in.
struct Encoded {
    rows: Tensor,
    kind: Kind,
}

fn encode(encoder: &dyn TextEncoder, chunk: usize) -> Encoded {
    let rows = encoder.encode(chunk);
    Encoded { kind: rows.kind(), rows: normalise(&rows) }
}

/// The rows of each role [R, D] over the chunks, without a gradient, in the kind in which they travel.
fn local(chunks: &[Encoded], roles: i64) -> Vec<Tensor> {
    let of_role = |role: i64| {
        let part = |chunk: &Encoded| {
            let c = chunk.rows.size()[0] / roles;
            chunk.rows.detach().narrow(0, role * c, c).to_kind(chunk.kind)
        };
        Tensor::cat(&chunks.iter().map(part).collect::<Vec<_>>(), 0)
    };
    (0..roles).map(of_role).collect()
}

/// The loss over all ranks' rows, a scalar, and the gradients of the local rows of each role.
fn losses(
    local: &[Tensor],
    Cut { rows, repeats, .. }: Cut<'_>,
    (contrast, settings): (Contrast<'_>, LossSettings),
    collective: &dyn Collective,
    timeline: &mut Timeline,
) -> Result<(Tensor, Vec<Tensor>), TrainerError> {
    let (queries_RD, positives_RD) = (&local[0], &local[1]);
    let first = rows[..collective.rank().0 as usize].iter().sum();
    let how = How { scale: contrast.scale, first, tile: settings.tile, repeats };

    let positives_BD = collective.all_gather_rows(positives_RD, rows)?;
    let negatives_BD = local.get(2).map(|rows_RD| collective.all_gather_rows(rows_RD, rows)).transpose()?;
    let lacking = contrast.lacking_R.map(|lacking_R| lacking_R.to_kind(Kind::Int64));
    let lacking = lacking.map(|lacking_R| collective.all_gather_rows(&lacking_R, rows)).transpose()?;
    let lacking_B = lacking.map(|lacking_B| lacking_B.to_kind(Kind::Bool));
    timeline.lap(Section::Gather);
    let mut kinds = vec![(Role::Positive, Targets { rows_BD: &positives_BD, absent_B: None })];
    if let Some(rows_BD) = &negatives_BD {
        kinds.push((Role::Negative, Targets { rows_BD, absent_B: lacking_B.as_ref() }));
    }
    let lse_R = how.lse(queries_RD, &kinds);
    let mut gradients = vec![how.query_gradient(queries_RD, &lse_R, &kinds)];
    drop((positives_BD, negatives_BD));
    let own_R = how.own_logits(queries_RD, positives_RD);
    timeline.lap(Section::Loss);
    let statistics_B2 = collective.all_gather_rows(&Tensor::stack(&[lse_R, own_R], 1), rows)?;
    let queries_BD = collective.all_gather_rows(queries_RD, rows)?;
    timeline.lap(Section::Gather);
    let lse_B = statistics_B2.select(1, 0);
    for (role, own_RD) in [Role::Positive, Role::Negative].into_iter().zip(&local[1..]) {
        let absent_R = if role == Role::Negative { contrast.lacking_R } else { None };
        gradients.push(how.target_gradient((role, own_RD, absent_R), &queries_BD, &lse_B));
    }
    timeline.lap(Section::Loss);
    Ok((loss(&statistics_B2), gradients))
}

/// Loss and gradients of the global batch, the gradients summed over ranks and left in `parameters`. Returns the loss as a
/// scalar tensor.
///
/// # Errors
/// When a peer fails.
pub fn accumulate(
    encoder: &dyn TextEncoder,
    cut: Cut<'_>,
    contrast: Contrast<'_>,
    collective: &dyn Collective,
    parameters: &mut FlatParameters,
    settings: LossSettings,
    timeline: &mut Timeline,
) -> Result<Tensor, TrainerError> {
    parameters.zero_grad();
    let (sizes, roles) = (cut.sizes, contrast.roles());
    let own = cut.rows.get(collective.rank().0 as usize);
    assert_eq!(Some(&sizes.iter().sum()), own, "the chunks are the rank's rows");

    let encode = |chunk: usize| encode(encoder, chunk);
    let (cache, local) = GradCache::first_pass(sizes.len(), &encode, |chunks| local(chunks, roles));
    timeline.lap(Section::Encode);
    let (total, gradients) = losses(&local, cut, (contrast, settings), collective, timeline)?;
    drop(local);

    let parts: Vec<Vec<Tensor>> = gradients.iter().map(|rows_RD| rows_RD.split_with_sizes(sizes, 0)).collect();
    let scalar = |Encoded { rows, .. }: &Encoded, chunk: usize| {
        let cached = Tensor::cat(&parts.iter().map(|role| &role[chunk]).collect::<Vec<_>>(), 0);
        (rows * cached).sum(rows.kind())
    };
    cache.second_pass(scalar, parameters, collective, timeline)?;
    Ok(total)
}

/// Begins one whole step; on the CPU it is done then. See [`accumulate`] for the other arguments.
///
/// # Errors
/// When a peer fails, or libtorch refuses.
pub fn contrast_step(
    encoder: &dyn TextEncoder,
    cut: Cut<'_>,
    contrast: Contrast<'_>,
    collective: &dyn Collective,
    parameters: &mut FlatParameters,
    settings: &StepSettings,
    mut timeline: Timeline,
) -> Result<StepBegun, TrainerError> {
    let total = accumulate(encoder, cut, contrast, collective, parameters, settings.loss, &mut timeline)?;
    update(&total, None, parameters, collective, settings, timeline)
}
