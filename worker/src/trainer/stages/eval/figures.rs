//! What one ranking amounts to, counted over all ranks.

use super::rank::{self, Ranked, Side};
use crate::trainer::{context::Context, error::TrainerError};
use common::sampler;
use tch::Tensor;

/// Targets are ranked in tiles of so many.
const TILE: i64 = 4096;
/// How many of the best targets are kept as examples.
const BEST: i64 = 3;

/// Recall in one direction.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Figures {
    /// The data set.
    pub data: String,
    /// The caption column, or the two that were compared.
    pub captions: String,
    /// From what to what.
    pub direction: String,
    /// Samples that were ranked.
    pub pairs: u64,
    /// Samples that could not be: their image is broken, or they lack a caption.
    pub left_out: u64,
    /// Queries; more than samples where these have several texts.
    pub queries: u64,
    /// What was ranked for each query.
    pub targets: u64,
    /// The share of queries with one of their own targets first.
    pub recall_at_1: f64,
    /// … among the first five.
    pub recall_at_5: f64,
    /// … among the first ten.
    pub recall_at_10: f64,
}

/// What is ranked, in words.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// The data set.
    pub data: &'a str,
    /// The caption columns.
    pub captions: &'a str,
    /// From what to what.
    pub direction: String,
    /// Samples that were ranked.
    pub pairs: u64,
    /// Samples that could not be.
    pub left_out: u64,
}

impl Figures {
    /// Ranks all targets for all queries, each rank its share of these. Returns the figures, and of every query the best
    /// three targets; both are the same on every rank.
    pub fn compute(
        subject: Subject<'_>,
        queries: Side<'_>,
        targets: Side<'_>,
        context: &Context<'_>,
    ) -> Result<(Self, Vec<Vec<i64>>), TrainerError> {
        let count = queries.image_n.len() as u64;
        let mine = sampler::local_slots(context.rank(), context.world(), count);
        let rows: Vec<i64> = sampler::rows(context.world(), count).into_iter().map(|n| n as i64).collect();
        let local = queries.rows_nD.narrow(0, mine.start as i64, (mine.end - mine.start) as i64);
        let images = &queries.image_n[mine.start as usize..mine.end as usize];
        let Ranked { position_n, best_nk } = rank::rank(Side { rows_nD: &local, image_n: images }, targets, TILE, BEST);
        let mut hits = rank::hits(&position_n);
        context.collective.all_reduce_sum(&mut hits)?;
        let hits: Vec<i64> = Vec::try_from(hits)?;
        let best: Tensor = context.collective.all_gather_rows(&best_nk.contiguous(), &rows)?;
        let share = |i: usize| hits[i] as f64 / count.max(1) as f64;
        let figures = Self {
            data: subject.data.to_owned(),
            captions: subject.captions.to_owned(),
            direction: subject.direction,
            pairs: subject.pairs,
            left_out: subject.left_out,
            queries: count,
            targets: targets.image_n.len() as u64,
            recall_at_1: share(0),
            recall_at_5: share(1),
            recall_at_10: share(2),
        };
        Ok((figures, Vec::try_from(best)?))
    }
}
