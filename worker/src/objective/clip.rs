//! CLIP's symmetric contrastive loss (Radford et al. 2021, section 2.3) over a global batch, streamed.
//!
//! A rank holds R of the B pairs and the embeddings of all of them. With S = s·I·Tᵀ the loss is
//! `1/2B · Σ_r [lse_j S_rj − S_rr + lse_j S_jr − S_rr]`. The [R, B] logits exist one tile of columns at a time; the
//! log-sum-exps of all rows are exchanged between [`statistics`] and [`gradients`], so each rank gets its rows' exact
//! gradients without a reduce-scatter.
//!
//! Shapes: B pairs over all ranks, R own pairs, D width, t columns of a tile.

use tch::{Kind, Tensor};

/// The embeddings that a rank works on; normalised rows.
pub struct Pairs<'a> {
    /// [B, D], all ranks' rows in rank order.
    pub image_BD: &'a Tensor,
    /// [B, D], the same pairs.
    pub text_BD: &'a Tensor,
    /// exp of the logit scale, a scalar.
    pub scale: &'a Tensor,
    /// Where the own rows begin.
    pub first: i64,
    /// How many own rows there are.
    pub rows: i64,
    /// Columns per tile.
    pub tile: i64,
}

impl Pairs<'_> {
    fn own(&self, all_BD: &Tensor) -> Tensor {
        all_BD.narrow(0, self.first, self.rows)
    }

    fn tiles(&self) -> impl Iterator<Item = (i64, i64)> + use<> {
        let (pairs, tile) = (self.image_BD.size()[0], self.tile.max(1));
        (0..pairs).step_by(tile as usize).map(move |start| (start, tile.min(pairs - start)))
    }

    /// [R, t]: logits of own queries against a tile of targets.
    fn logits(&self, own_RD: &Tensor, targets_BD: &Tensor, start: i64, length: i64) -> Tensor {
        own_RD.matmul(&targets_BD.narrow(0, start, length).tr()) * self.scale
    }
}

/// [R, 3]: of each own pair the log-sum-exp of its image's row, of its text's row, and its own logit.
pub fn statistics(pairs: &Pairs<'_>) -> Tensor {
    let (image_RD, text_RD) = (pairs.own(pairs.image_BD), pairs.own(pairs.text_BD));
    let lse = |own_RD: &Tensor, targets_BD: &Tensor| {
        let tiles: Vec<Tensor> = pairs
            .tiles()
            .map(|(start, length)| pairs.logits(own_RD, targets_BD, start, length).logsumexp([1i64], false))
            .collect();
        Tensor::stack(&tiles, 1).logsumexp([1i64], false)
    };
    let own_R = (&image_RD * &text_RD).sum_dim_intlist(&[1i64][..], false, None::<Kind>) * pairs.scale;
    Tensor::stack(&[lse(&image_RD, pairs.text_BD), lse(&text_RD, pairs.image_BD), own_R], 1)
}

/// The loss over all pairs, from the statistics [B, 3] of all ranks: a scalar.
pub fn loss(statistics_B3: &Tensor) -> Tensor {
    let column = |i: i64| statistics_B3.select(1, i);
    (column(0) + column(1) - column(2) * 2.0).mean(None::<Kind>) * 0.5
}

/// What a rank's pairs contribute to the gradient of the global loss.
pub struct Gradients {
    /// [R, D], of the own images' embeddings: complete.
    pub image_RD: Tensor,
    /// [R, D], of the own texts' embeddings: complete.
    pub text_RD: Tensor,
    /// Of the scale s, a scalar: the sum over ranks is the gradient.
    pub scale: Tensor,
}

/// The gradients of the own rows, given the statistics [B, 3] of all.
pub fn gradients(pairs: &Pairs<'_>, statistics_B3: &Tensor) -> Gradients {
    let (lse_image_B, lse_text_B) = (statistics_B3.select(1, 0), statistics_B3.select(1, 1));
    let (image_RD, text_RD) = (pairs.own(pairs.image_BD), pairs.own(pairs.text_BD));
    let (image_RD, scale) = one_way(pairs, &image_RD, pairs.text_BD, &lse_image_B, &lse_text_B);
    let (text_RD, _) = one_way(pairs, &text_RD, pairs.image_BD, &lse_text_B, &lse_image_B);
    Gradients { image_RD, text_RD, scale }
}

/// dL/d(own rows) [R, D], and their share of dL/ds.
fn one_way(
    pairs: &Pairs<'_>,
    own_RD: &Tensor,
    targets_BD: &Tensor,
    lse_rows_B: &Tensor,
    lse_columns_B: &Tensor,
) -> (Tensor, Tensor) {
    let count = targets_BD.size()[0] as f64;
    let lse_R1 = lse_rows_B.narrow(0, pairs.first, pairs.rows).unsqueeze(1);
    let mut gradient_RD = own_RD.zeros_like();
    let mut scale = pairs.scale.zeros_like();
    for (start, length) in pairs.tiles() {
        let logits_Rt = pairs.logits(own_RD, targets_BD, start, length);
        let lse_1t = lse_columns_B.narrow(0, start, length).unsqueeze(0);
        let mut g_Rt = (&logits_Rt - &lse_R1).exp() + (&logits_Rt - lse_1t).exp_();
        // −2δ: an own pair's column is its row's number after `first`.
        let _ = g_Rt.diagonal(pairs.first - start, 0, 1).g_sub_scalar_(2.0);
        let _ = g_Rt.g_mul_scalar_(0.5 / count);
        gradient_RD = gradient_RD.addmm(&g_Rt, &(targets_BD.narrow(0, start, length) * pairs.scale));
        scale += (g_Rt * logits_Rt).sum(None::<Kind>) / pairs.scale;
    }
    (gradient_RD, scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tch::Device;

    fn close(found: &Tensor, expected: &Tensor, relative: f64) -> Result<(), TestCaseError> {
        let difference = (found - expected).norm().double_value(&[]);
        let size = expected.norm().double_value(&[]).max(1e-3);
        prop_assert!(difference <= relative * size, "{difference} of {size}");
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_slices_and_tiles_give_the_gradients_that_autograd_gives(
            pairs in 1i64..24, world in 1usize..5, tile in 1i64..30, width in 1i64..9, seed in 0i64..1000,
        ) {
            tch::manual_seed(seed);
            let normal = || {
                let x = Tensor::randn([pairs, width], (Kind::Double, Device::Cpu));
                let norm = x.norm_scalaropt_dim(2.0, [-1i64], true);
                (x / norm).set_requires_grad(true)
            };
            let (image_BD, text_BD) = (normal(), normal());
            let scale = Tensor::from(7.5f64).set_requires_grad(true);
            let logits_BB = image_BD.matmul(&text_BD.tr()) * &scale;
            let targets = Tensor::arange(pairs, (Kind::Int64, Device::Cpu));
            let one_way = |logits: &Tensor| logits.log_softmax(-1, Kind::Double).nll_loss(&targets);
            let whole = (one_way(&logits_BB) + one_way(&logits_BB.tr())) * 0.5;
            whole.backward();

            let (image, text, s) = (image_BD.detach(), text_BD.detach(), scale.detach());
            let world = common::ids::WorldSize(world as u32);
            let slices: Vec<(i64, i64)> = world.ranks().map(|rank| {
                let range = common::sampler::local_slots(rank, world, pairs as u64);
                (range.start as i64, (range.end - range.start) as i64)
            }).filter(|(_, rows)| *rows > 0).collect();
            let view = |first, rows| Pairs { image_BD: &image, text_BD: &text, scale: &s, first, rows, tile };
            let all: Vec<Tensor> = slices.iter().map(|(first, rows)| statistics(&view(*first, *rows))).collect();
            let all_B3 = Tensor::cat(&all, 0);
            close(&loss(&all_B3), &whole, 1e-12)?;
            let parts: Vec<Gradients> = slices.iter().map(|(first, rows)| gradients(&view(*first, *rows), &all_B3)).collect();
            let cat = |part: fn(&Gradients) -> &Tensor| Tensor::cat(&parts.iter().map(part).collect::<Vec<_>>(), 0);
            close(&cat(|p| &p.image_RD), &image_BD.grad(), 1e-12)?;
            close(&cat(|p| &p.text_RD), &text_BD.grad(), 1e-12)?;
            let ds = parts.iter().fold(Tensor::from(0.0f64), |sum, part| sum + &part.scale);
            close(&ds, &scale.grad(), 1e-12)?;
        }
    }
}
