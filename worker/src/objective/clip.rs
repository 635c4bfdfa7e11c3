//! CLIP's symmetric contrastive loss (Radford et al. 2021, section 2.3) over a global batch, streamed.
//!
//! A rank holds R of the B pairs. With S = s·I·Tᵀ the loss is `1/2B · Σ_r [lse_j S_rj − S_rr + lse_j S_jr − S_rr]`. Logits
//! exist one tile at a time. The log-sum-exps of all rows are exchanged between [`Side::lse`] and [`Side::gradient`], so
//! each rank gets its rows' exact gradients without a reduce-scatter. Each function looks at own rows of one tower and at
//! all rows of the other: both towers' gathered rows need not be in memory at once.
//!
//! Shapes: B pairs over all ranks, R own pairs, D width, r by t a tile of logits. Rows are normalised, in fp64, fp32 or
//! bf16; what is summed over them is fp32 at least.

use super::{
    repeats::Repeats,
    rows::{product, stretches, wide},
};
use tch::{Kind, Tensor};

/// Own rows of one tower as queries, and the rows of the other that they are held against.
pub struct Side<'a> {
    /// [R, D], the own rows.
    pub own_RD: &'a Tensor,
    /// [B, D], all ranks' rows of the other tower in rank order.
    pub targets_BD: &'a Tensor,
    /// exp of the logit scale, a scalar.
    pub scale: &'a Tensor,
    /// Where the own rows begin among all.
    pub first: i64,
    /// Rows and columns of a tile of logits.
    pub tile: i64,
    /// Pairs that are no negatives of each other.
    pub repeats: &'a Repeats,
}

impl Side<'_> {
    /// [r, D]: own rows times s, so that their products with targets are logits.
    fn queries(&self, start: i64, length: i64) -> Tensor {
        let rows = self.own_RD.narrow(0, start, length);
        (rows.to_kind(wide(rows.kind())) * self.scale).to_kind(rows.kind())
    }

    fn targets(&self, start: i64, length: i64) -> Tensor {
        self.targets_BD.narrow(0, start, length)
    }

    /// [r, t]: logits of own rows from `row` on; those of a repeated sample are −∞, as if its pair were not there.
    fn logits(&self, queries_rD: &Tensor, row: i64, targets_tD: &Tensor, column: i64) -> Tensor {
        let mut logits_rt = product(queries_rD, &targets_tD.tr());
        let place = self.first + row;
        let (rows, columns) = (place..place + queries_rD.size()[0], column..column + targets_tD.size()[0]);
        self.repeats.hide(&mut logits_rt, rows, columns);
        logits_rt
    }

    /// [R]: the log-sum-exp of each own row's logits.
    pub fn lse(&self) -> Tensor {
        let block = |(row, length): (i64, i64)| {
            let queries = self.queries(row, length);
            let tiles: Vec<Tensor> = stretches(self.targets_BD.size()[0], self.tile)
                .map(|(start, length)| self.logits(&queries, row, &self.targets(start, length), start))
                .map(|logits_rt| logits_rt.logsumexp([1i64], false))
                .collect();
            Tensor::stack(&tiles, 1).logsumexp([1i64], false)
        };
        Tensor::cat(&stretches(self.own_RD.size()[0], self.tile).map(block).collect::<Vec<_>>(), 0)
    }

    /// dL/d(own rows) [R, D] in the rows' kind, complete, given all rows' log-sum-exps [B] of this side and of the other;
    /// and what this side says of the gradient of s: the sum over ranks is the gradient.
    pub fn gradient(&self, lse_own_B: &Tensor, lse_targets_B: &Tensor) -> (Tensor, Tensor) {
        let rows = stretches(self.own_RD.size()[0], self.tile);
        let blocks: Vec<(Tensor, Tensor)> =
            rows.map(|(start, length)| self.gradient_block(start, length, lse_own_B, lse_targets_B)).collect();
        let (gradients, scales): (Vec<_>, Vec<_>) = blocks.into_iter().unzip();
        (Tensor::cat(&gradients, 0), Tensor::stack(&scales, 0).sum(scales[0].kind()))
    }

    /// The gradient of `length` own rows from `row` on. With G = (exp(S − lse_row) + exp(S − lse_column) − 2δ)/2B it is
    /// s·G·T.
    fn gradient_block(&self, row: i64, length: i64, lse_own_B: &Tensor, lse_targets_B: &Tensor) -> (Tensor, Tensor) {
        let pairs = self.targets_BD.size()[0];
        let (queries, kind) = (self.queries(row, length), self.own_RD.kind());
        let place = self.first + row;
        let lse_r1 = lse_own_B.narrow(0, place, length).unsqueeze(1);
        let mut sum_rD = Tensor::zeros([length, self.own_RD.size()[1]], (wide(kind), self.own_RD.device()));
        for (start, columns) in stretches(pairs, self.tile) {
            let targets = self.targets(start, columns);
            let mut logits_rt = self.logits(&queries, row, &targets, start);
            let mut g_rt = (&logits_rt - &lse_r1).exp_();
            g_rt += logits_rt.g_sub_(&lse_targets_B.narrow(0, start, columns).unsqueeze(0)).exp_();
            // −2δ: an own row's column is its place among all.
            let _ = g_rt.diagonal(place - start, 0, 1).g_sub_scalar_(2.0);
            sum_rD += product(&g_rt.to_kind(kind), &targets);
        }
        let gradient_rD = sum_rD * (self.scale.to_kind(wide(kind)) * (0.5 / pairs as f64));
        // ΣG⊙S/s: the same sum, taken over D.
        let own = self.own_RD.narrow(0, row, length);
        let scale = (&gradient_rD * own).sum(wide(kind)) / self.scale;
        (gradient_rD.to_kind(kind), scale)
    }
}

/// [R]: the logit of each own pair.
pub fn own_logits(image_RD: &Tensor, text_RD: &Tensor, scale: &Tensor) -> Tensor {
    let kind = wide(image_RD.kind());
    (image_RD.to_kind(kind) * text_RD.to_kind(kind)).sum_dim_intlist(&[1i64][..], false, kind) * scale
}

/// The loss over all pairs, from [B, 3] of all ranks: a scalar. Of each pair the log-sum-exp of its image's row, of its
/// text's row, and its own logit.
pub fn loss(statistics_B3: &Tensor) -> Tensor {
    let column = |i: i64| statistics_B3.select(1, i);
    (column(0) + column(1) - column(2) * 2.0).mean(None::<Kind>) * 0.5
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tch::Device;

    fn close(found: &Tensor, expected: &Tensor, relative: f64) -> Result<(), TestCaseError> {
        let difference = (found - expected).norm().double_value(&[]);
        // What is 0 in theory is the difference of numbers of about 10.
        let size = expected.norm().double_value(&[]).max(1e-2);
        prop_assert!(difference <= relative * size, "{difference} of {size}");
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_slices_and_tiles_give_the_gradients_that_autograd_gives(
            pairs in 1i64..24, world in 1usize..5, tile in 1i64..30, width in 1i64..9, seed in 0i64..1000,
            same in prop::collection::vec((0i64..24, 0i64..24), 0..4),
        ) {
            let same: Vec<_> = same.into_iter().filter(|(a, b)| a != b && *a.max(b) < pairs).collect();
            let repeats = Repeats::new(same.iter().copied());
            tch::manual_seed(seed);
            let normal = || {
                let x = Tensor::randn([pairs, width], (Kind::Double, Device::Cpu));
                let norm = x.norm_scalaropt_dim(2.0, [-1i64], true);
                (x / norm).set_requires_grad(true)
            };
            let (image_BD, text_BD) = (normal(), normal());
            let scale = Tensor::from(7.5f64).set_requires_grad(true);
            let mask_BB = Tensor::zeros([pairs, pairs], (Kind::Bool, Device::Cpu));
            for (a, b) in same.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]) {
                let _ = mask_BB.get(a).get(b).fill_(1);
            }
            let logits_BB = (image_BD.matmul(&text_BD.tr()) * &scale).masked_fill(&mask_BB, f64::NEG_INFINITY);
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
            let own = |all: &Tensor, (first, rows): (i64, i64)| all.narrow(0, first, rows);
            let statistics = |slice: &(i64, i64)| {
                let (image_RD, text_RD) = (own(&image, *slice), own(&text, *slice));
                let lse = |own_RD, targets_BD| {
                    Side { own_RD, targets_BD, scale: &s, first: slice.0, tile, repeats: &repeats }.lse()
                };
                Tensor::stack(&[lse(&image_RD, &text), lse(&text_RD, &image), own_logits(&image_RD, &text_RD, &s)], 1)
            };
            let all_B3 = Tensor::cat(&slices.iter().map(statistics).collect::<Vec<_>>(), 0);
            close(&loss(&all_B3), &whole, 1e-12)?;
            let (lse_image, lse_text) = (all_B3.select(1, 0), all_B3.select(1, 1));
            let both = |(all, targets): (&Tensor, &Tensor), (lse_own, lse_targets): (&Tensor, &Tensor)| {
                let side = |slice: &(i64, i64)| {
                    let (own_RD, first) = (&own(all, *slice), slice.0);
                    Side { own_RD, targets_BD: targets, scale: &s, first, tile, repeats: &repeats }
                        .gradient(lse_own, lse_targets)
                };
                let (gradients, scales): (Vec<_>, Vec<_>) = slices.iter().map(side).unzip();
                (Tensor::cat(&gradients, 0), Tensor::stack(&scales, 0).sum(Kind::Double))
            };
            let (d_image, ds_image) = both((&image, &text), (&lse_image, &lse_text));
            let (d_text, ds_text) = both((&text, &image), (&lse_text, &lse_image));
            close(&d_image, &image_BD.grad(), 1e-12)?;
            close(&d_text, &text_BD.grad(), 1e-12)?;
            close(&ds_image, &scale.grad(), 1e-12)?;
            close(&ds_text, &scale.grad(), 1e-12)?;
        }
    }

    #[test]
    fn bf16_rows_give_the_loss_and_the_gradients_of_their_numbers() {
        tch::manual_seed(3);
        let (pairs, width) = (64, 96);
        let rows = || {
            let x = Tensor::randn([pairs, width], (Kind::Float, Device::Cpu));
            (&x / x.norm_scalaropt_dim(2.0, [-1i64], true)).to_kind(Kind::BFloat16)
        };
        let (image, text, scale) = (rows(), rows(), Tensor::from(20.0f32));
        let run = |kind: Kind| {
            let (image, text, scale) = (image.to_kind(kind), text.to_kind(kind), scale.to_kind(wide(kind)));
            let repeats = Repeats::default();
            let side =
                |own_RD, targets_BD| Side { own_RD, targets_BD, scale: &scale, first: 0, tile: 24, repeats: &repeats };
            let (lse_image, lse_text) = (side(&image, &text).lse(), side(&text, &image).lse());
            let total = loss(&Tensor::stack(&[&lse_image, &lse_text, &own_logits(&image, &text, &scale)], 1));
            (total, side(&image, &text).gradient(&lse_image, &lse_text).0)
        };
        let ((loss_16, d_16), (loss_64, d_64)) = (run(Kind::BFloat16), run(Kind::Double));
        assert_eq!((loss_16.kind(), d_16.kind()), (Kind::Float, Kind::BFloat16));
        let apart = (loss_16.double_value(&[]) - loss_64.double_value(&[])).abs();
        assert!(apart < 2e-3, "{apart}");
        let apart = ((&d_16 - &d_64).norm() / d_64.norm()).double_value(&[]);
        assert!(apart < 1e-2, "{apart}");
    }
}
