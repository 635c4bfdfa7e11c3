//! Exact retrieval without the full matrix: where a query's own target stands among all targets, and the best targets.

use tch::{Kind, Tensor};

/// The cut-offs of recall that the paper reports.
pub const CUTS: [i64; 3] = [1, 5, 10];

/// What a stretch of queries found.
#[derive(Debug)]
pub struct Ranked {
    /// [n] i64: how many targets stand before the query's own one.
    pub position_n: Tensor,
    /// [n, k] i64: the best targets, best first.
    pub best_nk: Tensor,
}

/// Ranks all targets for each query.
///
/// `queries_nD` are rows `first..first + n` of all queries, query i belongs to target i, and rows of both are
/// normalised. Targets are seen in tiles of `tile` rows; memory is O(n·tile). Of equal scores the lower index stands first.
#[allow(non_snake_case, reason = "shape legend: n local queries, M targets, D width, k best")]
pub fn rank(queries_nD: &Tensor, targets_MD: &Tensor, first: i64, tile: i64, k: i64) -> Ranked {
    let n = queries_nD.size()[0];
    let targets = targets_MD.size()[0];
    let device = queries_nD.device();
    let own_n1 = (Tensor::arange(n, (Kind::Int64, device)) + first).unsqueeze(1);
    let tiles = || (0..targets).step_by(tile.max(1) as usize).map(move |start| (start, tile.min(targets - start)));
    let scores = |start: i64, length: i64| queries_nD.matmul(&targets_MD.narrow(0, start, length).tr());

    // The own score is taken from the same product as those it is compared with, so that rounding cannot reorder them.
    let mut own_score_n1 = Tensor::zeros([n, 1], (queries_nD.kind(), device));
    for (start, length) in tiles().filter(|(start, length)| start + length > first && *start < first + n) {
        let column_n1 = (&own_n1 - start).clamp(0, length - 1);
        let inside_n1 = own_n1.ge(start).logical_and(&own_n1.lt(start + length));
        own_score_n1 = scores(start, length).gather(1, &column_n1, false).where_self(&inside_n1, &own_score_n1);
    }

    let mut position_n = Tensor::zeros([n], (Kind::Int64, device));
    let mut best: Option<(Tensor, Tensor)> = None;
    for (start, length) in tiles() {
        let score_nt = scores(start, length);
        let index_1t = (Tensor::arange(length, (Kind::Int64, device)) + start).unsqueeze(0);
        let before_nt = score_nt
            .gt_tensor(&own_score_n1)
            .logical_or(&score_nt.eq_tensor(&own_score_n1).logical_and(&index_1t.lt_tensor(&own_n1)));
        position_n += before_nt.sum_dim_intlist(1, false, Kind::Int64);
        let index_nt = index_1t.expand([n, length], false);
        let (score, index) = match best.take() {
            Some((score, index)) => (Tensor::cat(&[score, score_nt], 1), Tensor::cat(&[index, index_nt], 1)),
            None => (score_nt, index_nt),
        };
        let (kept, place) = score.topk(k.min(score.size()[1]), 1, true, true);
        best = Some((kept, index.gather(1, &place, false)));
    }
    let best_nk = best.map_or_else(|| Tensor::zeros([n, 0], (Kind::Int64, device)), |(_, index)| index);
    Ranked { position_n, best_nk }
}

/// How many positions are below each cut-off: [3] i64, in the order of [`CUTS`].
pub fn hits(position_n: &Tensor) -> Tensor {
    let counts = CUTS.map(|cut| position_n.lt(cut).sum(Kind::Int64));
    Tensor::stack(&counts, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// By sorting the full matrix.
    fn reference(queries: &Tensor, targets: &Tensor, first: i64) -> Vec<i64> {
        let scores: Vec<Vec<f32>> = Vec::try_from(queries.matmul(&targets.tr())).unwrap();
        let place = |(i, row): (usize, &Vec<f32>)| {
            let own = first as usize + i;
            let before = |j: &usize| row[*j] > row[own] || (row[*j] == row[own] && *j < own);
            (0..row.len()).filter(before).count() as i64
        };
        scores.iter().enumerate().map(place).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_tile_and_any_slice_rank_as_the_sorted_matrix(
            targets in 1i64..40, tile in 1i64..50, from in 0.0f64..1.0, part in 0.0f64..1.0, seed in 0i64..1000,
        ) {
            tch::manual_seed(seed);
            // Few distinct values, so that ties are common.
            let all = Tensor::randint(3, [targets, 4], (Kind::Float, tch::Device::Cpu));
            let queries = Tensor::randint(3, [targets, 4], (Kind::Float, tch::Device::Cpu));
            let first = (from * targets as f64) as i64;
            let n = (part * (targets - first) as f64) as i64;
            let mine = queries.narrow(0, first, n);
            let ranked = rank(&mine, &all, first, tile, 5);
            let found: Vec<i64> = Vec::try_from(&ranked.position_n).unwrap();
            prop_assert_eq!(&found, &if n == 0 { vec![] } else { reference(&mine, &all, first) });
            prop_assert_eq!(ranked.best_nk.size(), vec![n, 5.min(targets)]);
            let hit: Vec<i64> = Vec::try_from(hits(&ranked.position_n)).unwrap();
            prop_assert_eq!(hit, CUTS.map(|cut| found.iter().filter(|p| **p < cut).count() as i64).to_vec());
        }
    }

    #[test]
    fn the_best_are_the_best() {
        let targets = Tensor::from_slice(&[0.0f32, 3.0, 1.0, 2.0]).view([4, 1]);
        let ranked = rank(&Tensor::from_slice(&[1.0f32]).view([1, 1]), &targets, 2, 2, 3);
        assert_eq!(Vec::<i64>::try_from(ranked.best_nk.view([-1])).unwrap(), [1, 3, 2]);
        assert_eq!(Vec::<i64>::try_from(ranked.position_n).unwrap(), [2]);
    }
}
