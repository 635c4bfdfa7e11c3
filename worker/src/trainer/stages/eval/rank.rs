//! Exact retrieval without the full matrix: where a query's own target stands among all targets, and the best targets.
//!
//! An image may have several texts. The protocol is that of Karpathy's splits, which the paper's figures follow: text to
//! image, every text is a query, and its own image is the target; image to text, an image is found when any of its texts
//! is, so that the best of them counts. Nothing is averaged over the texts of an image.

use tch::{Kind, Tensor};

/// The cut-offs of recall that the paper reports.
pub const CUTS: [i64; 3] = [1, 5, 10];
/// Queries are ranked so many at a time, so that memory does not grow with their number.
const QUERIES: i64 = 1024;

/// Embeddings that are ranked, and what belongs together.
#[derive(Debug, Clone, Copy)]
#[allow(non_snake_case, reason = "shape legend: n rows, D width")]
pub struct Side<'a> {
    /// [n, D], rows normalised.
    pub rows_nD: &'a Tensor,
    /// The image of each row, ascending: a target with the query's image is the query's own.
    pub image_n: &'a [i64],
}

impl Side<'_> {
    /// The images of some rows; `None` of none.
    fn images(&self, start: i64, length: i64) -> Option<(i64, i64)> {
        let images = &self.image_n[start as usize..(start + length) as usize];
        Some((*images.first()?, *images.last()?))
    }
}

/// What queries found.
#[derive(Debug)]
pub struct Ranked {
    /// [n] i64: how many targets stand before the best of the query's own; `i64::MAX` when none is a number.
    pub position_n: Tensor,
    /// [n, k] i64: the best targets, best first.
    pub best_nk: Tensor,
}

/// Ranks all targets for each query. Targets are seen in tiles of `tile` rows; memory is O(tile). Of equal scores the lower
/// index stands first.
pub fn rank(queries: Side<'_>, targets: Side<'_>, tile: i64, k: i64) -> Ranked {
    let n = queries.image_n.len() as i64;
    let blocks = (0..n).step_by(QUERIES as usize).map(|start| {
        let length = QUERIES.min(n - start);
        let rows = queries.rows_nD.narrow(0, start, length);
        let images = &queries.image_n[start as usize..(start + length) as usize];
        rank_block(Side { rows_nD: &rows, image_n: images }, targets, tile.max(1), k)
    });
    let (positions, best): (Vec<Tensor>, Vec<Tensor>) =
        blocks.map(|ranked| (ranked.position_n, ranked.best_nk)).unzip();
    if positions.is_empty() {
        let none = |shape: &[i64]| Tensor::zeros(shape, (Kind::Int64, queries.rows_nD.device()));
        return Ranked { position_n: none(&[0]), best_nk: none(&[0, k.min(targets.image_n.len() as i64)]) };
    }
    Ranked { position_n: Tensor::cat(&positions, 0), best_nk: Tensor::cat(&best, 0) }
}

fn rank_block(queries: Side<'_>, targets: Side<'_>, tile: i64, k: i64) -> Ranked {
    let (n, count) = (queries.image_n.len() as i64, targets.image_n.len() as i64);
    let device = queries.rows_nD.device();
    let integers = (Kind::Int64, device);
    let tiles = || (0..count).step_by(tile as usize).map(move |start| (start, tile.min(count - start)));
    let scores = |start: i64, length: i64| queries.rows_nD.matmul(&targets.rows_nD.narrow(0, start, length).tr());
    let indices = |start: i64, length: i64| (Tensor::arange(length, integers) + start).unsqueeze(0);

    // The own score is taken from the same product as those it is compared with, so that rounding cannot reorder them.
    let image_n1 = Tensor::from_slice(queries.image_n).to_device(device).unsqueeze(1);
    let mut own_score_n1 = Tensor::full([n, 1], f64::NEG_INFINITY, (queries.rows_nD.kind(), device));
    let mut own_n1 = Tensor::full([n, 1], i64::MAX, integers);
    let wanted = queries.images(0, n);
    for (start, length) in tiles() {
        let (Some((first, last)), Some((from, to))) = (wanted, targets.images(start, length)) else { continue };
        if to < first || from > last {
            continue;
        }
        let images = &targets.image_n[start as usize..(start + length) as usize];
        let own_nt = image_n1.eq_tensor(&Tensor::from_slice(images).to_device(device).unsqueeze(0));
        let score_nt = scores(start, length).masked_fill(&own_nt.logical_not(), f64::NEG_INFINITY);
        let best_n1 = score_nt.amax([1i64].as_slice(), true);
        let at_best_nt = score_nt.eq_tensor(&best_n1).logical_and(&own_nt);
        let index_nt = indices(start, length).masked_fill(&at_best_nt.logical_not(), i64::MAX);
        let better_n1 = best_n1.gt_tensor(&own_score_n1);
        own_n1 = index_nt.amin([1i64].as_slice(), true).where_self(&better_n1, &own_n1);
        own_score_n1 = best_n1.where_self(&better_n1, &own_score_n1);
    }

    let mut position_n = Tensor::zeros([n], integers);
    let mut best: Option<(Tensor, Tensor)> = None;
    for (start, length) in tiles() {
        let score_nt = scores(start, length);
        let index_1t = indices(start, length);
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
    // A query whose own scores are no numbers has found nothing.
    let position_n = position_n.masked_fill(&own_n1.squeeze_dim(1).eq(i64::MAX), i64::MAX);
    let best_nk = best.map_or_else(|| Tensor::zeros([n, 0], integers), |(_, index)| index);
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
    use serde::Deserialize;
    use std::collections::BTreeMap;

    /// By sorting the full matrix: the place of the first target that is the query's own.
    fn reference(queries: Side<'_>, targets: Side<'_>) -> Vec<i64> {
        let scores: Vec<Vec<f32>> = Vec::try_from(queries.rows_nD.matmul(&targets.rows_nD.tr())).unwrap();
        let place = |(image, row): (&i64, &Vec<f32>)| {
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
            order.iter().position(|target| targets.image_n[*target] == *image).unwrap() as i64
        };
        queries.image_n.iter().zip(&scores).map(place).collect()
    }

    fn positions(ranked: &Ranked) -> Vec<i64> {
        Vec::try_from(&ranked.position_n).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_tile_any_slice_and_any_number_of_texts_rank_as_the_sorted_matrix(
            counts in prop::collection::vec(1i64..6, 1..20), tile in 1i64..50, from in 0.0f64..1.0, part in 0.0f64..1.0,
            seed in 0i64..1000,
        ) {
            tch::manual_seed(seed);
            let images = counts.len() as i64;
            let image_n: Vec<i64> = (0..images).collect();
            let owner_m: Vec<i64> =
                (0..images).flat_map(|image| (0..counts[image as usize]).map(move |_| image)).collect();
            // Few distinct values, so that ties are common.
            let draw = |rows: usize| Tensor::randint(3, [rows as i64, 4], (Kind::Float, tch::Device::Cpu));
            let (image, text) = (draw(image_n.len()), draw(owner_m.len()));
            let sides = [Side { rows_nD: &image, image_n: &image_n }, Side { rows_nD: &text, image_n: &owner_m }];
            for (all, targets) in [(sides[0], sides[1]), (sides[1], sides[0])] {
                let length = all.image_n.len();
                let first = (from * length as f64) as usize;
                let n = (part * (length - first) as f64) as usize;
                let mine = all.rows_nD.narrow(0, first as i64, n as i64);
                let queries = Side { rows_nD: &mine, image_n: &all.image_n[first..first + n] };
                let ranked = rank(queries, targets, tile, 5);
                let found = positions(&ranked);
                prop_assert_eq!(&found, &if n == 0 { vec![] } else { reference(queries, targets) });
                prop_assert_eq!(ranked.best_nk.size(), vec![n as i64, 5.min(targets.image_n.len() as i64)]);
                let hit: Vec<i64> = Vec::try_from(hits(&ranked.position_n)).unwrap();
                prop_assert_eq!(hit, CUTS.map(|cut| found.iter().filter(|p| **p < cut).count() as i64).to_vec());
            }
        }
    }

    #[test]
    fn the_best_are_the_best() {
        let targets = Tensor::from_slice(&[0.0f32, 3.0, 1.0, 2.0]).view([4, 1]);
        let query = Tensor::from_slice(&[1.0f32]).view([1, 1]);
        let targets = Side { rows_nD: &targets, image_n: &[0, 1, 2, 3] };
        let ranked = rank(Side { rows_nD: &query, image_n: &[2] }, targets, 2, 3);
        assert_eq!(Vec::<i64>::try_from(ranked.best_nk.view([-1])).unwrap(), [1, 3, 2]);
        assert_eq!(positions(&ranked), [2]);
    }

    #[test]
    fn embeddings_that_are_no_numbers_find_nothing() {
        let bad = Tensor::from_slice(&[f32::NAN, f32::NAN]).view([2, 1]);
        let side = Side { rows_nD: &bad, image_n: &[0, 1] };
        assert_eq!(positions(&rank(side, side, 2, 1)), [i64::MAX, i64::MAX]);
    }

    #[derive(Deserialize)]
    struct Several {
        image: Vec<f32>,
        text: Vec<f32>,
        owners: Vec<i64>,
        image_to_text: BTreeMap<i64, f64>,
        text_to_image: BTreeMap<i64, f64>,
    }

    #[derive(Deserialize)]
    struct One {
        first: Vec<i64>,
        image_to_text: BTreeMap<i64, f64>,
        text_to_image: BTreeMap<i64, f64>,
    }

    #[derive(Deserialize)]
    struct Golden {
        width: i64,
        several: Several,
        one: One,
    }

    fn check(queries: Side<'_>, targets: Side<'_>, expected: &BTreeMap<i64, f64>) {
        let found: Vec<i64> = Vec::try_from(hits(&rank(queries, targets, 7, 1).position_n)).unwrap();
        for (cut, hits) in CUTS.iter().zip(found) {
            let share = hits as f64 / queries.image_n.len() as f64;
            assert!((share - expected[cut]).abs() < 1e-9, "R@{cut}: {share} and {}", expected[cut]);
        }
    }

    #[test]
    fn recall_is_what_open_clip_and_torch_count() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/retrieval/golden.json");
        let golden: Golden = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let tensor = |numbers: &[f32]| Tensor::from_slice(numbers).view([-1, golden.width]);
        let (image, text) = (tensor(&golden.several.image), tensor(&golden.several.text));
        let images: Vec<i64> = (0..image.size()[0]).collect();
        let image = Side { rows_nD: &image, image_n: &images };
        let several = Side { rows_nD: &text, image_n: &golden.several.owners };
        check(image, several, &golden.several.image_to_text);
        check(several, image, &golden.several.text_to_image);
        let first = text.index_select(0, &Tensor::from_slice(&golden.one.first));
        let one = Side { rows_nD: &first, image_n: &images };
        check(image, one, &golden.one.image_to_text);
        check(one, image, &golden.one.text_to_image);
    }
}
