//! Self-distillation over a global batch (ProCLIP, arXiv 2510.18795, section 3.3; the public code's `train_one_epoch_stage2`):
//! rows stay near a teacher's, and as far from each other as the teacher's are.
//!
//! Of n rows s and the teacher's t the loss is `Σ_i ‖s_i − t_i‖² + Σ_{i<j} h(‖s_i − s_j‖ − ‖t_i − t_j‖)` with the smooth L1
//! `h(x) = x²/2` within ±1 and `|x| − 1/2` beyond. The public code sums over the rows of a device. Here all pairs of the global
//! batch count, and both means are scaled to sums over n rows: the same on average, whatever the number of ranks. A sample that
//! stands twice is at distance 0 from itself in both, and adds nothing.
//!
//! Distances exist one tile at a time, and each rank gets its rows' exact gradients. Shapes: B rows over all ranks, R own rows,
//! D width, r by t a tile. Rows are normalised, in fp64, fp32 or bf16; what is summed over them is fp32 at least.

use super::rows::{product, stretches, wide};
use tch::{Kind, Tensor};

/// Own rows and all ranks', of the tower that is trained and of its teacher.
pub struct Side<'a> {
    /// [R, D], the own rows.
    pub own_RD: &'a Tensor,
    /// [R, D], the teacher's rows of the same images.
    pub teacher_RD: &'a Tensor,
    /// [B, D], all ranks' rows in rank order.
    pub all_BD: &'a Tensor,
    /// [B, D], the teacher's.
    pub teacher_BD: &'a Tensor,
    /// Where the own rows begin among all.
    pub first: i64,
    /// Rows and columns of a tile.
    pub tile: i64,
    /// n, the number of rows that the sums are scaled to.
    pub rows: f64,
}

impl Side<'_> {
    /// [R]: what each own row adds to the loss; the sum over all ranks' rows is the loss. And dL/d(own rows) [R, D] in the rows'
    /// kind, complete.
    pub fn evaluate(&self) -> (Tensor, Tensor) {
        let blocks = stretches(self.own_RD.size()[0], self.tile).map(|(row, length)| self.block(row, length));
        let (losses, gradients): (Vec<_>, Vec<_>) = blocks.unzip();
        (Tensor::cat(&losses, 0), Tensor::cat(&gradients, 0))
    }

    fn block(&self, row: i64, length: i64) -> (Tensor, Tensor) {
        let (kind, all) = (self.own_RD.kind(), self.all_BD.size()[0]);
        let sums = wide(kind);
        // Means over B rows and over B(B − 1)/2 pairs, as sums over n rows and n(n − 1)/2 pairs.
        let instance = self.rows / all as f64;
        let structure = instance * (self.rows - 1.0) / (all - 1).max(1) as f64;
        let (own_rD, teacher_rD) = (self.own_RD.narrow(0, row, length), self.teacher_RD.narrow(0, row, length));
        let apart_rD = own_rD.to_kind(sums) - teacher_rD.to_kind(sums);
        let mut loss_r = apart_rD.square().sum_dim_intlist(&[1i64][..], false, sums) * instance;
        let mut gradient_rD = apart_rD * (2.0 * instance);
        for (start, columns) in stretches(all, self.tile) {
            let others_tD = self.all_BD.narrow(0, start, columns);
            let apart_rt = distances(&own_rD, &others_tD);
            let change_rt = &apart_rt - distances(&teacher_rD, &self.teacher_BD.narrow(0, start, columns));
            let slope_rt = change_rt.clamp(-1.0, 1.0);
            // h(x) = c·(x − c/2) with c = x cut at ±1. Each pair is seen from both of its rows; a row is no pair with itself.
            let of_self = |tile_rt: &Tensor| {
                let _ = tile_rt.diagonal(self.first + row - start, 0, 1).zero_();
            };
            let smooth_rt = &slope_rt * (change_rt - &slope_rt * 0.5);
            of_self(&smooth_rt);
            loss_r += smooth_rt.sum_dim_intlist(&[1i64][..], false, sums) * (0.5 * structure);
            // dh/ds_i = h'/‖s_i − s_j‖ · (s_i − s_j); rows that are the same have no direction, and 0 as torch has it.
            let pull_rt = (slope_rt / &apart_rt).masked_fill(&apart_rt.eq(0.0), 0.0);
            of_self(&pull_rt);
            let pull_r1 = pull_rt.sum_dim_intlist(&[1i64][..], true, sums);
            let towards_rD = product(&pull_rt.to_kind(kind), &others_tD);
            gradient_rD += (own_rD.to_kind(sums) * pull_r1 - towards_rD) * structure;
        }
        (loss_r, gradient_rD.to_kind(kind))
    }
}

/// [r, t]: L2 distances of rows.
fn distances(a_rD: &Tensor, b_tD: &Tensor) -> Tensor {
    let kind = wide(a_rD.kind());
    let squares = |rows: &Tensor| rows.to_kind(kind).square().sum_dim_intlist(&[1i64][..], false, kind);
    let products_rt = product(a_rD, &b_tD.tr());
    (squares(a_rD).unsqueeze(1) + squares(b_tD).unsqueeze(0) - products_rt * 2.0).clamp_min(0.0).sqrt()
}

/// The loss over all ranks' rows, from what each adds [B]: a scalar.
pub fn loss(added_B: &Tensor) -> Tensor {
    added_B.sum(None::<Kind>)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::fixtures::{close, golden, normal_rows, slices};
    use proptest::prelude::*;
    use tch::Device;

    /// Loss and gradients, each slice's part put together.
    fn whole(student: &Tensor, teacher: &Tensor, (world, tile, rows): (usize, i64, f64)) -> (Tensor, Tensor) {
        let parts = slices(world, student.size()[0]).into_iter().map(|(first, count)| {
            let own = |all: &Tensor| all.narrow(0, first, count);
            let (own_RD, teacher_RD) = (&own(student), &own(teacher));
            Side { own_RD, teacher_RD, all_BD: student, teacher_BD: teacher, first, tile, rows }.evaluate()
        });
        let (losses, gradients): (Vec<_>, Vec<_>) = parts.unzip();
        (loss(&Tensor::cat(&losses, 0)), Tensor::cat(&gradients, 0))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_slices_and_tiles_give_the_gradients_that_autograd_gives(
            count in 1i64..24, world in 1usize..5, tile in 1i64..30, width in 4i64..9, seed in 0i64..1000, rows in 1.0f64..40.0,
        ) {
            tch::manual_seed(seed);
            let (student, teacher) = (normal_rows(count, width), normal_rows(count, width).detach());
            let upper = Tensor::ones([count, count], (Kind::Bool, Device::Cpu)).triu(1);
            let distances = |rows: &Tensor| {
                let apart = rows.unsqueeze(1) - rows.unsqueeze(0);
                apart.square().sum_dim_intlist(&[2i64][..], false, Kind::Double).masked_select(&upper).sqrt()
            };
            let change = distances(&student) - distances(&teacher);
            let smooth = change.smooth_l1_loss(&change.zeros_like(), tch::Reduction::Sum, 1.0);
            let n = count as f64;
            let pairs = if count > 1 { rows * (rows - 1.0) / (n * (n - 1.0)) } else { 0.0 };
            let expected =
                (&student - &teacher).square().sum(Kind::Double) * (rows / n) + smooth * pairs;
            expected.backward();
            let (loss, gradient) = whole(&student.detach(), &teacher, (world, tile, rows));
            close(&loss, &expected, 1e-12)?;
            close(&gradient, &student.grad(), 1e-11)?;
        }
    }

    #[test]
    fn loss_and_gradients_are_those_of_torchs_distances() {
        let case = golden("distillation");
        let rows = case["student"].size()[0] as f64;
        for (world, tile) in [(1, 64), (3, 5)] {
            let (loss, gradient) = whole(&case["student"], &case["teacher"], (world, tile, rows));
            for (expected, found) in [("loss", loss), ("grad.student", gradient)] {
                let off = ((&found - &case[expected]).norm() / case[expected].norm()).double_value(&[]);
                println!("{expected}: off by {off:.1e}");
                assert!(off < 1e-12, "{expected}: off by {off}");
            }
        }
    }

    #[test]
    fn rows_that_are_their_teachers_have_no_loss_and_no_gradient() {
        tch::manual_seed(5);
        let rows = normal_rows(9, 6).detach();
        let rows = Tensor::cat(&[&rows, &rows.narrow(0, 0, 2)], 0);
        let (loss, gradient) = whole(&rows, &rows, (2, 4, 11.0));
        assert_eq!((loss.double_value(&[]), gradient.abs().max().double_value(&[])), (0.0, 0.0));
    }
}
