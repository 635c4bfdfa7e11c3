//! The figures of `bench recovery`, for machines and for people.

use super::{super::super::output, schedule::Phase};
use serde::Serialize;

/// What one death was followed by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Death {
    /// Seconds until its daemon saw it; absent when it did not say so.
    pub(super) seen: Option<f64>,
    /// Seconds until no peer waited for it any more; absent when none did.
    pub(super) released: Option<f64>,
    /// Seconds until a step was there that is new.
    pub(super) new_step: f64,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) worst: f64,
    pub(super) all: Vec<f64>,
}

impl Spread {
    /// Absent when there is nothing.
    pub(super) fn of(all: Vec<f64>) -> Option<Self> {
        let mut sorted = all.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied();
        let median = f64::midpoint(at(sorted.len().checked_sub(1)? / 2)?, at(sorted.len() / 2)?);
        Some(Self { median, worst: *sorted.last()?, all })
    }
}

/// What was measured in one phase.
#[derive(Debug, Serialize)]
pub(super) struct OfPhase {
    phase: Phase,
    kills: usize,
    kill_to_seen_s: Option<Spread>,
    kill_to_released_s: Option<Spread>,
    kill_to_next_new_step_s: Option<Spread>,
    steps_lost: u64,
}

impl OfPhase {
    pub(super) fn new(phase: Phase, deaths: &[Death], steps_lost: u64) -> Self {
        Self {
            phase,
            kills: deaths.len(),
            kill_to_seen_s: Spread::of(deaths.iter().filter_map(|death| death.seen).collect()),
            kill_to_released_s: Spread::of(deaths.iter().filter_map(|death| death.released).collect()),
            kill_to_next_new_step_s: Spread::of(deaths.iter().map(|death| death.new_step).collect()),
            steps_lost,
        }
    }

    fn row(&self) -> Vec<String> {
        let shown = |spread: &Option<Spread>| {
            spread.as_ref().map_or_else(|| "-".to_owned(), |s| format!("{:.3} / {:.3}", s.median, s.worst))
        };
        vec![
            self.phase.to_string(),
            self.kills.to_string(),
            shown(&self.kill_to_seen_s),
            shown(&self.kill_to_released_s),
            shown(&self.kill_to_next_new_step_s),
            self.steps_lost.to_string(),
        ]
    }
}

/// All that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    pub(super) ranks: u32,
    pub(super) spare: bool,
    pub(super) kills: usize,
    /// Of all phases.
    pub(super) kill_to_next_new_step_s: Option<Spread>,
    /// Of a step that nobody is killed in: the median.
    pub(super) step_s: f64,
    /// Steps that were computed twice, or whose figures are missing although no rank 0 was killed with them.
    pub(super) steps_lost: u64,
    /// Lines that rank 0 had not written when it was killed.
    pub(super) metrics_lines_missing: u64,
    pub(super) phases: Vec<OfPhase>,
}

impl Measured {
    /// For people.
    pub(super) fn lines(&self) -> Vec<String> {
        let spare = if self.spare { ", one spare" } else { "" };
        let head = format!("{} kills, {} ranks{spare}, a step takes {:.3} s", self.kills, self.ranks, self.step_s);
        let columns = ["KILLED IN", "KILLS", "SEEN (s)", "PEERS RELEASED (s)", "NEW STEP (s)", "STEPS LOST"];
        let rows: Vec<Vec<String>> = self.phases.iter().map(OfPhase::row).collect();
        let mut lines = vec![format!("{head}; median / worst")];
        lines.extend(output::table(&columns, &rows));
        lines.push(format!("lines of metrics missing: {}", self.metrics_lines_missing));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_two() {
        let check = |all: &[f64], expected: Option<(f64, f64)>| {
            assert_eq!(Spread::of(all.to_vec()).map(|spread| (spread.median, spread.worst)), expected);
        };
        check(&[3.0, 1.0, 2.0], Some((2.0, 3.0)));
        check(&[4.0, 1.0, 2.0, 3.0], Some((2.5, 4.0)));
        check(&[1.0], Some((1.0, 1.0)));
        check(&[], None);
    }

    #[test]
    fn what_nobody_saw_is_a_dash() {
        let death = Death { seen: Some(0.0041), released: None, new_step: 0.7 };
        let of = OfPhase::new(Phase::Start, &[death], 0);
        assert_eq!(of.row(), ["start", "1", "0.004 / 0.004", "-", "0.700 / 0.700", "0"]);
    }
}
