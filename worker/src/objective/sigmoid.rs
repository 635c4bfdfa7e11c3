//! SigLIP's pairwise sigmoid loss (Zhai et al. 2023, equation 1) over a global batch, streamed.
//!
//! A rank holds R of the B pairs. With S = s·I·Tᵀ + b and z = 1 for a pair, −1 for any other two, the loss is
//! `−1/B · Σ_rj log σ(z_rj·S_rj)`: each logit stands by itself, so there is nothing to exchange but rows. Logits exist one tile
//! at a time; each rank gets its rows' exact gradients without a reduce-scatter, and both towers' gathered rows need not be in
//! memory at once. open_clip's `SigLipLoss` divides by the rows of a rank and takes the mean over ranks: the same.
//!
//! A sample that stands twice in a batch is no negative of itself, as in the softmax loss: the two logits add nothing, to the
//! loss or to a gradient, and B stays.
//!
//! Shapes: B pairs over all ranks, R own pairs, D width, r by t a tile of logits. Rows are normalised, in fp64, fp32 or bf16;
//! what is summed over them is fp32 at least.

use super::{
    repeats::Repeats,
    rows::{product, stretches, wide},
};
use tch::Tensor;

/// Own rows of one tower, and the rows of the other that they are held against.
pub struct Side<'a> {
    /// [R, D], the own rows.
    pub own_RD: &'a Tensor,
    /// [B, D], all ranks' rows of the other tower in rank order.
    pub targets_BD: &'a Tensor,
    /// exp of the logit scale, a scalar.
    pub scale: &'a Tensor,
    /// The logit bias, a scalar.
    pub bias: &'a Tensor,
    /// Where the own rows begin among all.
    pub first: i64,
    /// Rows and columns of a tile of logits.
    pub tile: i64,
    /// Pairs that are no negatives of each other.
    pub repeats: &'a Repeats,
}

/// What own rows come to. Of the scalars' gradients the sum over ranks, of one of the two sides, is the gradient.
pub struct Found {
    /// [R]: each own row's sum over all columns; the mean over all ranks' rows is the loss.
    pub loss_R: Tensor,
    /// dL/d(own rows) [R, D] in the rows' kind, complete.
    pub rows_RD: Tensor,
    /// Of dL/ds.
    pub scale: Tensor,
    /// Of dL/db.
    pub bias: Tensor,
}

impl Side<'_> {
    /// Loss and gradients of the own rows, in one pass over the logits.
    pub fn evaluate(&self) -> Found {
        let blocks: Vec<Found> =
            stretches(self.own_RD.size()[0], self.tile).map(|(row, length)| self.block(row, length)).collect();
        let each = |part: fn(&Found) -> &Tensor| blocks.iter().map(part).collect::<Vec<_>>();
        let kind = wide(self.own_RD.kind());
        Found {
            loss_R: Tensor::cat(&each(|found| &found.loss_R), 0),
            rows_RD: Tensor::cat(&each(|found| &found.rows_RD), 0),
            scale: Tensor::stack(&each(|found| &found.scale), 0).sum(kind),
            bias: Tensor::stack(&each(|found| &found.bias), 0).sum(kind),
        }
    }

    /// Of `length` own rows from `row` on. With G = −z·σ(−z·S)/B, dL/dS, the gradient of rows is s·G·T.
    fn block(&self, row: i64, length: i64) -> Found {
        let (pairs, kind, device) = (self.targets_BD.size()[0], self.own_RD.kind(), self.own_RD.device());
        let (place, sums) = (self.first + row, wide(kind));
        let own_rD = self.own_RD.narrow(0, row, length);
        let queries_rD = (own_rD.to_kind(sums) * self.scale).to_kind(kind);
        let mut loss_r = Tensor::zeros([length], (sums, device));
        let mut g_r = Tensor::zeros([length], (sums, device));
        let mut sum_rD = Tensor::zeros([length, own_rD.size()[1]], (sums, device));
        for (start, columns) in stretches(pairs, self.tile) {
            let targets_tD = self.targets_BD.narrow(0, start, columns);
            let mut logits_rt = product(&queries_rD, &targets_tD.tr()).g_add_(self.bias);
            self.repeats.hide(&mut logits_rt, place..place + length, start..start + columns);
            // An own row's column is its place among all.
            let own_pairs = |tile_rt: &Tensor| {
                let _ = tile_rt.diagonal(place - start, 0, 1).neg_();
            };
            // z·S, and of it log σ: neither sum nor difference of large numbers.
            let mut signed_rt = logits_rt.neg_();
            own_pairs(&signed_rt);
            loss_r -= signed_rt.log_sigmoid().sum_dim_intlist(&[1i64][..], false, sums);
            let g_rt = signed_rt.neg_().sigmoid_();
            own_pairs(&g_rt);
            g_r += g_rt.sum_dim_intlist(&[1i64][..], false, sums);
            sum_rD += product(&g_rt.to_kind(kind), &targets_tD);
        }
        let share = 1.0 / pairs as f64;
        let gradient_rD = sum_rD * (self.scale.to_kind(sums) * share);
        // ΣG⊙S/s: the same sum, taken over D.
        let scale = (&gradient_rD * own_rD).sum(sums) / self.scale;
        Found { loss_R: loss_r, rows_RD: gradient_rD.to_kind(kind), scale, bias: g_r.sum(sums) * share }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::fixtures::{close, golden, normal_rows, slices};
    use proptest::prelude::*;
    use tch::{Device, Kind};

    /// Each slice's part, put together.
    fn whole(image: &Tensor, text: &Tensor, scalars: (&Tensor, &Tensor), how: (usize, i64, &Repeats)) -> [Found; 2] {
        let ((scale, bias), (world, tile, repeats)) = (scalars, how);
        let slices = slices(world, image.size()[0]);
        [(image, text), (text, image)].map(|(own, targets_BD)| {
            let parts = slices.iter().map(|(first, rows)| {
                let own_RD = &own.narrow(0, *first, *rows);
                Side { own_RD, targets_BD, scale, bias, first: *first, tile, repeats }.evaluate()
            });
            let parts: Vec<Found> = parts.collect();
            let each = |part: fn(&Found) -> &Tensor| parts.iter().map(part).collect::<Vec<_>>();
            Found {
                loss_R: Tensor::cat(&each(|found| &found.loss_R), 0),
                rows_RD: Tensor::cat(&each(|found| &found.rows_RD), 0),
                scale: Tensor::stack(&each(|found| &found.scale), 0).sum(own.kind()),
                bias: Tensor::stack(&each(|found| &found.bias), 0).sum(own.kind()),
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_slices_and_tiles_give_the_gradients_that_autograd_gives(
            pairs in 1i64..24, world in 1usize..5, tile in 1i64..30, width in 1i64..9, seed in 0i64..1000,
            bias in -12.0f64..12.0, same in prop::collection::vec((0i64..24, 0i64..24), 0..4),
        ) {
            let same: Vec<_> = same.into_iter().filter(|(a, b)| a != b && *a.max(b) < pairs).collect();
            let repeats = Repeats::new(same.iter().copied());
            tch::manual_seed(seed);
            let (image_BD, text_BD) = (normal_rows(pairs, width), normal_rows(pairs, width));
            let scale = Tensor::from(7.5f64).set_requires_grad(true);
            let bias = Tensor::from(bias).set_requires_grad(true);
            let counted_BB = Tensor::ones([pairs, pairs], (Kind::Double, Device::Cpu));
            for (a, b) in same.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]) {
                let _ = counted_BB.get(a).get(b).fill_(0.0);
            }
            let z_BB = Tensor::eye(pairs, (Kind::Double, Device::Cpu)) * 2.0 - 1.0;
            let logits_BB = image_BD.matmul(&text_BD.tr()) * &scale + &bias;
            let loss = -((logits_BB * z_BB).log_sigmoid() * counted_BB).sum(Kind::Double) / pairs as f64;
            loss.backward();

            let (image, text) = (image_BD.detach(), text_BD.detach());
            let scalars = (&scale.detach(), &bias.detach());
            for (found, expected) in whole(&image, &text, scalars, (world, tile, &repeats)).iter().zip([&image_BD, &text_BD]) {
                close(&found.loss_R.mean(Kind::Double), &loss, 1e-12)?;
                close(&found.rows_RD, &expected.grad(), 1e-12)?;
                close(&found.scale, &scale.grad(), 1e-12)?;
                close(&found.bias, &bias.grad(), 1e-12)?;
            }
        }
    }

    #[test]
    fn loss_and_gradients_are_those_of_open_clip() {
        let case = golden("sigmoid");
        let get = |name: &str| &case[name];
        let (scale, bias) = (get("log_scale").exp(), get("bias").shallow_clone());
        for (world, tile) in [(1, 64), (3, 5)] {
            let [image, text] = whole(get("image"), get("text"), (&scale, &bias), (world, tile, &Repeats::default()));
            for (name, found, expected) in [
                ("loss", image.loss_R.mean(Kind::Double), "loss"),
                ("image", image.rows_RD, "grad.image"),
                ("text", text.rows_RD, "grad.text"),
                ("log_scale", image.scale * &scale, "grad.log_scale"),
                ("bias", image.bias, "grad.bias"),
            ] {
                let expected = get(expected);
                let off = ((&found - expected).norm() / expected.norm()).double_value(&[]);
                println!("{name}: off by {off:.1e}");
                assert!(off < 1e-12, "{name}: off by {off}");
            }
        }
    }

    #[test]
    fn bf16_rows_give_the_loss_and_the_gradients_of_their_numbers() {
        tch::manual_seed(3);
        let rows = || normal_rows(64, 96).detach().to_kind(Kind::BFloat16);
        let (image, text) = (rows(), rows());
        let run = |kind: Kind| {
            let scalar = |value: f64| Tensor::from(value).to_kind(wide(kind));
            let (image, text, scale, bias) = (image.to_kind(kind), text.to_kind(kind), scalar(10.0), scalar(-10.0));
            whole(&image, &text, (&scale, &bias), (1, 24, &Repeats::default()))
        };
        let ([image_16, _], [image_64, _]) = (run(Kind::BFloat16), run(Kind::Double));
        assert_eq!((image_16.loss_R.kind(), image_16.rows_RD.kind()), (Kind::Float, Kind::BFloat16));
        for (found, expected) in [(image_16.loss_R, image_64.loss_R), (image_16.rows_RD, image_64.rows_RD)] {
            let apart = ((found - &expected).norm() / expected.norm()).double_value(&[]);
            assert!(apart < 1e-2, "{apart}");
        }
    }
}
