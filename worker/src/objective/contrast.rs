//! The loss of caption-to-caption tuning: supervised SimCSE (Gao et al. 2021, equation 5; the public code's
//! `HardNegativeNLLLoss`) in one direction over a global batch, streamed.
//!
//! A rank holds R of the B pairs. Query i seeks its positive d⁺_i among the positives and the negatives d⁻ of all ranks: with
//! S = s·q·[d⁺; d⁻]ᵀ the loss is `1/B · Σ_i [lse_j S_ij − S_ii]`. Logits exist one tile at a time. Queries see all targets;
//! targets see all queries and their log-sum-exps; so each rank gets its rows' exact gradients without a reduce-scatter.
//!
//! Shapes: B pairs over all ranks, R own pairs, D width, r by t a tile of logits. Rows are normalised, in fp64, fp32 or bf16;
//! what is summed over them is fp32 at least.

use super::{
    repeats::Repeats,
    rows::{product, stretches, wide},
};
use tch::{Kind, Tensor};

/// What all ranks have of one role.
#[derive(Debug, Clone, Copy)]
pub struct Targets<'a> {
    /// [B, D], in rank order.
    pub rows_BD: &'a Tensor,
    /// [B] bool: the pairs that have none; absent when all have one. Their rows are no negatives.
    pub absent_B: Option<&'a Tensor>,
}

/// What is the same for all rows.
#[derive(Debug, Clone, Copy)]
pub struct How<'a> {
    /// s, the factor on cosines.
    pub scale: f64,
    /// Where the own rows begin among all.
    pub first: i64,
    /// Rows and columns of a tile of logits.
    pub tile: i64,
    /// Pairs that are no negatives of each other.
    pub repeats: &'a Repeats,
}

/// Whether target i is query i's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It is: the positives. Those of a repeated sample are no negatives of it.
    Positive,
    /// It is not.
    Negative,
}

impl How<'_> {
    /// Rows times s, so that their products with others are logits.
    fn scaled(&self, rows_RD: &Tensor, start: i64, length: i64) -> Tensor {
        let rows = rows_RD.narrow(0, start, length);
        (rows.to_kind(wide(rows.kind())) * self.scale).to_kind(rows.kind())
    }

    /// [r, t]: logits of queries from place `query` on, against targets from place `target` on; −∞ where a target is none.
    fn logits(
        &self,
        queries: (&Tensor, i64),
        targets: (&Tensor, i64),
        absent_B: Option<&Tensor>,
        role: Role,
    ) -> Tensor {
        let ((queries_rD, query), (targets_tD, target)) = (queries, targets);
        let mut logits_rt = product(queries_rD, &targets_tD.tr());
        let (r, t) = (queries_rD.size()[0], targets_tD.size()[0]);
        if let Some(absent_B) = absent_B {
            let _ = logits_rt.masked_fill_(&absent_B.narrow(0, target, t).unsqueeze(0), f64::NEG_INFINITY);
        }
        if role == Role::Positive {
            self.repeats.hide(&mut logits_rt, query..query + r, target..target + t);
        }
        logits_rt
    }

    /// [R]: the log-sum-exp of each own query's logits over all targets.
    pub fn lse(&self, queries_RD: &Tensor, kinds: &[(Role, Targets<'_>)]) -> Tensor {
        let block = |(row, length): (i64, i64)| {
            let queries_rD = self.scaled(queries_RD, row, length);
            let mut tiles = Vec::new();
            for (role, targets) in kinds {
                for (start, columns) in stretches(targets.rows_BD.size()[0], self.tile) {
                    let tile_tD = targets.rows_BD.narrow(0, start, columns);
                    let queries = (&queries_rD, self.first + row);
                    let logits_rt = self.logits(queries, (&tile_tD, start), targets.absent_B, *role);
                    tiles.push(logits_rt.logsumexp([1i64], false));
                }
            }
            Tensor::stack(&tiles, 1).logsumexp([1i64], false)
        };
        Tensor::cat(&stretches(queries_RD.size()[0], self.tile).map(block).collect::<Vec<_>>(), 0)
    }

    /// dL/d(own queries) [R, D] in the rows' kind, complete, given the own log-sum-exps [R]. With
    /// G = (exp(S − lse) − δ)/B it is s·G·[d⁺; d⁻].
    pub fn query_gradient(&self, queries_RD: &Tensor, lse_R: &Tensor, kinds: &[(Role, Targets<'_>)]) -> Tensor {
        let kind = queries_RD.kind();
        let block = |(row, length): (i64, i64)| {
            let queries_rD = self.scaled(queries_RD, row, length);
            let place = self.first + row;
            let lse_r1 = lse_R.narrow(0, row, length).unsqueeze(1);
            let mut sum_rD = Tensor::zeros([length, queries_RD.size()[1]], (wide(kind), queries_RD.device()));
            for (role, targets) in kinds {
                for (start, columns) in stretches(targets.rows_BD.size()[0], self.tile) {
                    let tile_tD = targets.rows_BD.narrow(0, start, columns);
                    let logits_rt = self.logits((&queries_rD, place), (&tile_tD, start), targets.absent_B, *role);
                    let g_rt = (logits_rt - &lse_r1).exp_();
                    if *role == Role::Positive {
                        // −δ: an own row's column is its place among all.
                        let _ = g_rt.diagonal(place - start, 0, 1).g_sub_scalar_(1.0);
                    }
                    sum_rD += product(&g_rt.to_kind(kind), &tile_tD);
                }
            }
            sum_rD
        };
        let blocks: Vec<Tensor> = stretches(queries_RD.size()[0], self.tile).map(block).collect();
        self.mean(&Tensor::cat(&blocks, 0), kinds[0].1.rows_BD.size()[0], kind)
    }

    /// dL/d(own targets) [R, D] of one role in the rows' kind, complete, given all queries [B, D] and their log-sum-exps
    /// [B]; `absent_R` are the own ones that are none.
    pub fn target_gradient(
        &self,
        (role, own_RD, absent_R): (Role, &Tensor, Option<&Tensor>),
        queries_BD: &Tensor,
        lse_B: &Tensor,
    ) -> Tensor {
        let (pairs, kind) = (queries_BD.size()[0], own_RD.kind());
        let block = |(row, length): (i64, i64)| {
            let own_tD = self.scaled(own_RD, row, length);
            let place = self.first + row;
            let mut sum_tD = Tensor::zeros([length, own_RD.size()[1]], (wide(kind), own_RD.device()));
            for (start, rows) in stretches(pairs, self.tile) {
                let queries_rD = queries_BD.narrow(0, start, rows);
                let logits_rt = self.logits((&queries_rD, start), (&own_tD, place), None, role);
                let g_rt = (logits_rt - lse_B.narrow(0, start, rows).unsqueeze(1)).exp_();
                if role == Role::Positive {
                    let _ = g_rt.diagonal(start - place, 0, 1).g_sub_scalar_(1.0);
                }
                sum_tD += product(&g_rt.tr().to_kind(kind), &queries_rD);
            }
            sum_tD
        };
        let blocks: Vec<Tensor> = stretches(own_RD.size()[0], self.tile).map(block).collect();
        let mut sum_RD = Tensor::cat(&blocks, 0);
        if let Some(absent_R) = absent_R {
            let _ = sum_RD.masked_fill_(&absent_R.unsqueeze(1), 0.0);
        }
        self.mean(&sum_RD, pairs, kind)
    }

    fn mean(&self, sum_RD: &Tensor, pairs: i64, kind: Kind) -> Tensor {
        (sum_RD * (self.scale / pairs as f64)).to_kind(kind)
    }

    /// [R]: the logit of each own pair.
    pub fn own_logits(&self, queries_RD: &Tensor, positives_RD: &Tensor) -> Tensor {
        let kind = wide(queries_RD.kind());
        let products_RD = queries_RD.to_kind(kind) * positives_RD.to_kind(kind);
        products_RD.sum_dim_intlist(&[1i64][..], false, kind) * self.scale
    }
}

/// The loss over all pairs, from [B, 2] of all ranks: a scalar. Of each pair its query's log-sum-exp, and its own logit.
pub fn loss(statistics_B2: &Tensor) -> Tensor {
    (statistics_B2.select(1, 0) - statistics_B2.select(1, 1)).mean(None::<Kind>)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::close;
    use super::*;
    use proptest::prelude::*;
    use tch::Device;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_slices_and_tiles_give_the_gradients_that_autograd_gives(
            pairs in 1i64..20, world in 1usize..5, tile in 1i64..26, width in 1i64..9, seed in 0i64..1000,
            same in prop::collection::vec((0i64..20, 0i64..20), 0..3), with_negatives in any::<bool>(),
            lacking in prop::collection::vec(0i64..20, 0..4),
        ) {
            let same: Vec<_> = same.into_iter().filter(|(a, b)| a != b && *a.max(b) < pairs).collect();
            let repeats = Repeats::new(same.iter().copied());
            tch::manual_seed(seed);
            let normal = || {
                let x = Tensor::randn([pairs, width], (Kind::Double, Device::Cpu));
                let norm = x.norm_scalaropt_dim(2.0, [-1i64], true);
                (x / norm).set_requires_grad(true)
            };
            let (q, p, n) = (normal(), normal(), normal());
            let absent_B = Tensor::zeros([pairs], (Kind::Bool, Device::Cpu));
            for place in lacking.into_iter().filter(|place| *place < pairs) {
                let _ = absent_B.get(place).fill_(1);
            }
            let mask_BB = Tensor::zeros([pairs, pairs], (Kind::Bool, Device::Cpu));
            for (a, b) in same.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]) {
                let _ = mask_BB.get(a).get(b).fill_(1);
            }
            const SCALE: f64 = 9.0;
            let positives = (q.matmul(&p.tr()) * SCALE).masked_fill(&mask_BB, f64::NEG_INFINITY);
            let negatives = (q.matmul(&n.tr()) * SCALE).masked_fill(&absent_B.unsqueeze(0), f64::NEG_INFINITY);
            let logits = if with_negatives { Tensor::cat(&[positives, negatives], 1) } else { positives };
            let targets = Tensor::arange(pairs, (Kind::Int64, Device::Cpu));
            let whole = logits.log_softmax(-1, Kind::Double).nll_loss(&targets);
            whole.backward();

            let [q_BD, p_BD, n_BD] = [&q, &p, &n].map(Tensor::detach);
            let mut kinds = vec![(Role::Positive, Targets { rows_BD: &p_BD, absent_B: None })];
            if with_negatives {
                kinds.push((Role::Negative, Targets { rows_BD: &n_BD, absent_B: Some(&absent_B) }));
            }
            let world = common::ids::WorldSize(world as u32);
            let slices: Vec<(i64, i64)> = world.ranks().map(|rank| {
                let range = common::sampler::local_slots(rank, world, pairs as u64);
                (range.start as i64, (range.end - range.start) as i64)
            }).filter(|(_, rows)| *rows > 0).collect();
            let how = |first| How { scale: SCALE, first, tile, repeats: &repeats };
            let statistics = |(first, rows): &(i64, i64)| {
                let (q_RD, p_RD) = (q_BD.narrow(0, *first, *rows), p_BD.narrow(0, *first, *rows));
                Tensor::stack(&[how(*first).lse(&q_RD, &kinds), how(*first).own_logits(&q_RD, &p_RD)], 1)
            };
            let all_B2 = Tensor::cat(&slices.iter().map(statistics).collect::<Vec<_>>(), 0);
            close(&loss(&all_B2), &whole, 1e-12)?;
            let lse_B = all_B2.select(1, 0);
            let each = |of: &dyn Fn(i64, i64) -> Tensor| {
                Tensor::cat(&slices.iter().map(|(first, rows)| of(*first, *rows)).collect::<Vec<_>>(), 0)
            };
            let own = |all: &Tensor, first, rows| all.narrow(0, first, rows);
            close(&each(&|first, rows| {
                how(first).query_gradient(&own(&q_BD, first, rows), &own(&lse_B, first, rows), &kinds)
            }), &q.grad(), 1e-12)?;
            close(&each(&|first, rows| {
                how(first).target_gradient((Role::Positive, &own(&p_BD, first, rows), None), &q_BD, &lse_B)
            }), &p.grad(), 1e-12)?;
            if with_negatives {
                close(&each(&|first, rows| {
                    let absent = own(&absent_B, first, rows);
                    let mine = own(&n_BD, first, rows);
                    how(first).target_gradient((Role::Negative, &mine, Some(&absent)), &q_BD, &lse_B)
                }), &n.grad(), 1e-12)?;
            }
        }
    }
}
