//! CLIP's symmetric contrastive loss (Radford et al. 2021, section 2.3) over a global batch, streamed.
//!
//! A rank holds R of the B pairs. With S = s·I·Tᵀ the loss is `1/2B · Σ_r [lse_j S_rj − S_rr + lse_j S_jr − S_rr]`. Logits
//! exist one tile at a time. The log-sum-exps of all rows are exchanged between [`Side::lse`] and [`Side::gradient`], so
//! each rank gets its rows' exact gradients without a reduce-scatter. Each function looks at own rows of one tower and at
//! all rows of the other: both towers' gathered rows need not be in memory at once.
//!
//! With label smoothing ε (Szegedy et al. 2016, section 7; torch's `cross_entropy`) a row's target is 1 − ε on its own pair and
//! ε shared out evenly over all of its columns: in the loss, `(1 − ε)·S_rr + ε·mean_j S_rj` stands for S_rr.
//!
//! A sample that stands twice in a batch is no negative of itself: its two logits are left out of every sum, and of the columns
//! that ε is shared over.
//!
//! Shapes: B pairs over all ranks, R own pairs, D width, r by t a tile of logits. Rows are normalised, in fp64, fp32 or
//! bf16; what is summed over them is fp32 at least.

use super::{
    repeats::Repeats,
    rows::{product, stretches, wide},
};
use crate::torch::transfer::numbers;
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
    /// ε, the label smoothing; 0 for none.
    pub smoothing: f64,
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

    /// [R]: the mean of each own row's logits.
    pub fn mean_logits(&self) -> Tensor {
        let (kind, device, first) = (wide(self.own_RD.kind()), self.own_RD.device(), self.first);
        let (own_RD, own) = (self.own_RD.to_kind(kind), first..first + self.own_RD.size()[0]);
        let sum_D = self.targets_BD.sum_dim_intlist(&[0i64][..], false, kind);
        let mut sum_R = own_RD.mv(&sum_D) * self.scale;
        let (rows, columns): (Vec<i64>, Vec<i64>) =
            self.repeats.of_rows(&own).map(|(row, column)| (row - first, column)).unzip();
        if !rows.is_empty() {
            let index = |places: &[i64]| numbers(places, device);
            let hidden_nD = self.targets_BD.index_select(0, &index(&columns)).to_kind(kind);
            let logits_n =
                (own_RD.index_select(0, &index(&rows)) * hidden_nD).sum_dim_intlist(&[1i64][..], false, kind);
            let _ = sum_R.index_add_(0, &index(&rows), &(-(logits_n * self.scale)));
        }
        sum_R * self.column_shares(own)
    }

    /// 1 over the number of columns, without those of repeated samples: of each of some rows, or a scalar where all have the
    /// same number. The logits are symmetric in that: it goes for columns as well.
    fn column_shares(&self, rows: std::ops::Range<i64>) -> Tensor {
        let (kind, device, pairs) = (wide(self.own_RD.kind()), self.own_RD.device(), self.targets_BD.size()[0]);
        if self.repeats.is_empty() {
            return Tensor::full([], 1.0 / pairs as f64, (kind, device));
        }
        let mut seen = vec![pairs as f64; (rows.end - rows.start) as usize];
        self.repeats.of_rows(&rows).for_each(|(row, _)| seen[(row - rows.start) as usize] -= 1.0);
        let shares: Vec<f64> = seen.into_iter().map(f64::recip).collect();
        numbers(&shares, device).to_kind(kind)
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
    /// s·G·T; with label smoothing 2(1 − ε)δ and ε's shares of row and column stand for 2δ.
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
            if self.smoothing > 0.0 {
                self.smooth(&mut g_rt, place..place + length, start..start + columns);
            }
            // −2δ: an own row's column is its place among all.
            let _ = g_rt.diagonal(place - start, 0, 1).g_sub_scalar_(2.0 * (1.0 - self.smoothing));
            sum_rD += product(&g_rt.to_kind(kind), &targets);
        }
        let gradient_rD = sum_rD * (self.scale.to_kind(wide(kind)) * (0.5 / pairs as f64));
        // ΣG⊙S/s: the same sum, taken over D.
        let own = self.own_RD.narrow(0, row, length);
        let scale = (&gradient_rD * own).sum(wide(kind)) / self.scale;
        (gradient_rD.to_kind(kind), scale)
    }
}

impl Side<'_> {
    /// Takes ε's shares from a tile of G.
    fn smooth(&self, g_rt: &mut Tensor, rows: std::ops::Range<i64>, columns: std::ops::Range<i64>) {
        let shares = |places| self.column_shares(places) * self.smoothing;
        if self.repeats.is_empty() {
            *g_rt -= shares(rows.clone()) * 2.0;
        } else {
            *g_rt -= shares(rows.clone()).unsqueeze(1) + shares(columns.clone()).unsqueeze(0);
        }
        self.repeats.fill(g_rt, rows, columns, 0.0);
    }
}

/// [R]: what each own pair's logit counts for in the loss with label smoothing, given the means of its row in both directions.
pub fn smoothed(own_R: &Tensor, means: [&Tensor; 2], smoothing: f64) -> Tensor {
    own_R * (1.0 - smoothing) + (means[0] + means[1]) * (0.5 * smoothing)
}

/// [R]: the logit of each own pair.
pub fn own_logits(image_RD: &Tensor, text_RD: &Tensor, scale: &Tensor) -> Tensor {
    let kind = wide(image_RD.kind());
    (image_RD.to_kind(kind) * text_RD.to_kind(kind)).sum_dim_intlist(&[1i64][..], false, kind) * scale
}

/// The loss over all pairs, from [B, 3] of all ranks: a scalar. Of each pair the log-sum-exp of its image's row, of its
/// text's row, and its own logit, or what [`smoothed`] makes of it.
pub fn loss(statistics_B3: &Tensor) -> Tensor {
    let column = |i: i64| statistics_B3.select(1, i);
    (column(0) + column(1) - column(2) * 2.0).mean(None::<Kind>) * 0.5
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::fixtures::{close, golden, normal_rows, slices};
    use proptest::prelude::*;
    use tch::Device;

    /// Loss, gradients of images, texts and the scale (from either side), each slice's part put together.
    fn whole(image: &Tensor, text: &Tensor, s: &Tensor, how: (usize, i64, &Repeats, f64)) -> [Tensor; 5] {
        let (world, tile, repeats, smoothing) = how;
        let slices = slices(world, image.size()[0]);
        let own = |all: &Tensor, (first, rows): (i64, i64)| all.narrow(0, first, rows);
        let statistics = |slice: &(i64, i64)| {
            let (image_RD, text_RD) = (own(image, *slice), own(text, *slice));
            let side =
                |own_RD, targets_BD| Side { own_RD, targets_BD, scale: s, first: slice.0, tile, repeats, smoothing };
            let sides = [side(&image_RD, text), side(&text_RD, image)];
            let mut pair_R = own_logits(&image_RD, &text_RD, s);
            if smoothing > 0.0 {
                pair_R = smoothed(&pair_R, [&sides[0].mean_logits(), &sides[1].mean_logits()], smoothing);
            }
            Tensor::stack(&[sides[0].lse(), sides[1].lse(), pair_R], 1)
        };
        let all_B3 = Tensor::cat(&slices.iter().map(statistics).collect::<Vec<_>>(), 0);
        let (lse_image, lse_text) = (all_B3.select(1, 0), all_B3.select(1, 1));
        let both = |(all, targets): (&Tensor, &Tensor), (lse_own, lse_targets): (&Tensor, &Tensor)| {
            let side = |slice: &(i64, i64)| {
                let (own_RD, first) = (&own(all, *slice), slice.0);
                Side { own_RD, targets_BD: targets, scale: s, first, tile, repeats, smoothing }
                    .gradient(lse_own, lse_targets)
            };
            let (gradients, scales): (Vec<_>, Vec<_>) = slices.iter().map(side).unzip();
            (Tensor::cat(&gradients, 0), Tensor::stack(&scales, 0).sum(Kind::Double))
        };
        let (d_image, ds_image) = both((image, text), (&lse_image, &lse_text));
        let (d_text, ds_text) = both((text, image), (&lse_text, &lse_image));
        [loss(&all_B3), d_image, d_text, ds_image, ds_text]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_slices_and_tiles_give_the_gradients_that_autograd_gives(
            pairs in 1i64..24, world in 1usize..5, tile in 1i64..30, width in 1i64..9, seed in 0i64..1000,
            smoothing in prop_oneof![Just(0.0), 0.01f64..0.9], same in prop::collection::vec((0i64..24, 0i64..24), 0..4),
        ) {
            let same: Vec<_> = same.into_iter().filter(|(a, b)| a != b && *a.max(b) < pairs).collect();
            let repeats = Repeats::new(same.iter().copied());
            tch::manual_seed(seed);
            let (image_BD, text_BD) = (normal_rows(pairs, width), normal_rows(pairs, width));
            let scale = Tensor::from(7.5f64).set_requires_grad(true);
            let seen_BB = Tensor::ones([pairs, pairs], (Kind::Bool, Device::Cpu));
            for (a, b) in same.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]) {
                let _ = seen_BB.get(a).get(b).fill_(0);
            }
            let hidden_BB = seen_BB.logical_not();
            let logits_BB = image_BD.matmul(&text_BD.tr()) * &scale;
            let seen_B = seen_BB.to_kind(Kind::Double).sum_dim_intlist(&[1i64][..], false, Kind::Double);
            let one_way = |logits: &Tensor| {
                let log_p = logits.masked_fill(&hidden_BB, f64::NEG_INFINITY).log_softmax(-1, Kind::Double);
                let even_B = log_p.masked_fill(&hidden_BB, 0.0).sum_dim_intlist(&[1i64][..], false, Kind::Double) / &seen_B;
                -(log_p.diagonal(0, 0, 1) * (1.0 - smoothing) + even_B * smoothing).mean(Kind::Double)
            };
            let expected = (one_way(&logits_BB) + one_way(&logits_BB.tr())) * 0.5;
            expected.backward();

            let (image, text, s) = (image_BD.detach(), text_BD.detach(), scale.detach());
            let [loss, d_image, d_text, ds_image, ds_text] = whole(&image, &text, &s, (world, tile, &repeats, smoothing));
            close(&loss, &expected, 1e-12)?;
            close(&d_image, &image_BD.grad(), 1e-12)?;
            close(&d_text, &text_BD.grad(), 1e-12)?;
            close(&ds_image, &scale.grad(), 1e-12)?;
            close(&ds_text, &scale.grad(), 1e-12)?;
        }
    }

    #[test]
    fn loss_and_gradients_are_those_of_torchs_cross_entropy_with_and_without_label_smoothing() {
        for (name, smoothing) in [("softmax", 0.0), ("softmax-smoothed", 0.1)] {
            let case = golden(name);
            let scale = case["log_scale"].exp();
            for (world, tile) in [(1, 64), (3, 5)] {
                let how = (world, tile, &Repeats::default(), smoothing);
                let [loss, d_image, d_text, ds, _] = whole(&case["image"], &case["text"], &scale, how);
                for (expected, found) in
                    [("loss", loss), ("grad.image", d_image), ("grad.text", d_text), ("grad.log_scale", ds * &scale)]
                {
                    let off = ((&found - &case[expected]).norm() / case[expected].norm()).double_value(&[]);
                    println!("{name}, {expected}: off by {off:.1e}");
                    assert!(off < 1e-12, "{name}, {expected}: off by {off}");
                }
            }
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
            let scale = &scale;
            let side = |own_RD, targets_BD| Side {
                own_RD,
                targets_BD,
                scale,
                first: 0,
                tile: 24,
                repeats: &repeats,
                smoothing: 0.0,
            };
            let (lse_image, lse_text) = (side(&image, &text).lse(), side(&text, &image).lse());
            let total = loss(&Tensor::stack(&[&lse_image, &lse_text, &own_logits(&image, &text, scale)], 1));
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
