//! Samples that stand in a global batch more than once.

use crate::torch::transfer::numbers;
use std::ops::Range;
use tch::{Kind, Tensor};

/// Places of a global batch that hold the same sample: its image is no negative of its own caption, nor of another of its
/// captions. Nearly always there is none; with `tail = "carry"` there may be where an epoch ends within a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repeats {
    /// (row, column) of the logits, both ways, in ascending order.
    hidden: Vec<(i64, i64)>,
}

impl Repeats {
    /// Of pairs of different places.
    pub fn new(pairs: impl IntoIterator<Item = (i64, i64)>) -> Self {
        let mut hidden: Vec<_> = pairs.into_iter().flat_map(|(a, b)| [(a, b), (b, a)]).collect();
        hidden.sort_unstable();
        hidden.dedup();
        Self { hidden }
    }

    /// Makes the logits of repeated samples −∞ in the tile of `rows` and `columns`.
    pub fn hide(&self, logits_rt: &mut Tensor, rows: Range<i64>, columns: Range<i64>) {
        self.fill(logits_rt, rows, columns, f64::NEG_INFINITY);
    }

    /// Puts `value` where repeated samples meet in the tile of `rows` and `columns`.
    pub(super) fn fill(&self, tile_rt: &mut Tensor, rows: Range<i64>, columns: Range<i64>, value: f64) {
        let (r, t): (Vec<i64>, Vec<i64>) = self
            .of_rows(&rows)
            .filter(|(_, column)| columns.contains(column))
            .map(|(row, column)| (row - rows.start, column - columns.start))
            .unzip();
        if r.is_empty() {
            return;
        }
        let index = |places: &[i64]| Some(numbers(places, tile_rt.device()));
        let (r, t) = (index(&r), index(&t));
        let value = Tensor::full([], value, (Kind::Double, tile_rt.device())).to_kind(tile_rt.kind());
        let _ = tile_rt.index_put_(&[r, t], &value, false);
    }

    /// (row, column) of repeated samples in some rows of the logits, in ascending order.
    pub(super) fn of_rows(&self, rows: &Range<i64>) -> impl Iterator<Item = (i64, i64)> {
        let first = self.hidden.partition_point(|(row, _)| *row < rows.start);
        let end = rows.end;
        self.hidden[first..].iter().copied().take_while(move |(row, _)| *row < end)
    }

    /// Whether no sample is there twice.
    pub fn is_empty(&self) -> bool {
        self.hidden.is_empty()
    }
}
