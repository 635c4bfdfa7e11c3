//! Which rank is slow, of what each says of its own time: what it computes and loads itself, without its waits for others.

use super::{Membership, transition::Step};
use common::ids::Rank;

/// A difference of less than this, in seconds a step, is nobody's.
const LEAST_S: f64 = 0.005;
/// A slow rank is slow until its own time is below this share of what made it one.
const OVER: f64 = 0.9;

impl Step {
    /// Names who has become slow, and who is so no longer.
    pub(super) fn stragglers(&mut self) {
        let factor = self.state.recipe.faults.detect.straggler_factor;
        let Some(membership) = self.state.membership.as_mut() else { return };
        let mut told = Vec::new();
        for (rank, own, median) in changed(membership, factor) {
            let Some(member) = membership.member_mut(rank) else { continue };
            member.straggles = !member.straggles;
            let (kind, now) = if member.straggles {
                ("straggler", "is slow")
            } else {
                ("straggler-over", "is as fast as the others again")
            };
            let worker = &member.place.worker;
            told.push((
                kind,
                format!(
                    "rank {rank} on {worker} {now}: {own:.3} s a step of its own, the others {median:.3} s (median)"
                ),
            ));
        }
        for (kind, message) in told {
            self.tell(kind, message);
        }
    }
}

/// The ranks that became slow or cease to be, with their own seconds a step and the median of the others'.
fn changed(membership: &Membership, factor: f64) -> Vec<(Rank, f64, f64)> {
    let own: Option<Vec<f64>> = membership.members.iter().map(|member| member.own_step_s).collect();
    let Some(own) = own.filter(|own| own.len() > 1) else { return Vec::new() };
    let judged = |(rank, member): (Rank, &super::Member)| {
        let at = rank.0 as usize;
        let (mine, median) =
            (own[at], median(own.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, own)| *own)));
        let least = if member.straggles { OVER * factor } else { factor };
        let slow = mine > least * median && mine - median > LEAST_S;
        (slow != member.straggles).then_some((rank, mine, median))
    };
    membership.world().ranks().zip(&membership.members).filter_map(judged).collect()
}

/// The lower median: of two, the less.
fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = numbers.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use crate::job::{Event, JobState, fixture as f};
    use common::{
        ids::{Generation, Step},
        status::Progress,
    };

    fn after(state: JobState, own: &[f64]) -> JobState {
        let report = |(slot, own): (u32, &f64)| {
            let progress = Progress { own_step_s: Some(*own), ..Progress::at(Generation(2), 1, Step(3), 10) };
            Event::Progress { place: f::place(slot), progress: Box::new(progress) }
        };
        f::after(state, (0..).zip(own).map(report))
    }

    fn slow(state: &JobState) -> Vec<bool> {
        state.membership.as_ref().unwrap().members.iter().map(|member| member.straggles).collect()
    }

    #[test]
    fn a_slow_rank_is_named_once_and_so_is_that_it_is_no_longer() {
        let state = after(f::training(3), &[0.1, 0.16]);
        assert_eq!(slow(&state), [false; 3], "of one of them nothing is known");
        let state = after(state, &[0.1, 0.16, 0.1]);
        assert_eq!(slow(&state), [false, true, false]);
        let state = after(state, &[0.1, 0.17, 0.1]);
        let state = after(state, &[0.1, 0.14, 0.1]);
        assert_eq!(slow(&state), [false, true, false], "it was slower than that a moment ago");
        let state = after(state, &[0.1, 0.13, 0.1]);
        assert_eq!(slow(&state), [false; 3]);
        let kinds: Vec<&str> =
            state.events.iter().map(|event| event.kind.as_str()).filter(|kind| kind.starts_with("straggler")).collect();
        assert_eq!(kinds, ["straggler", "straggler-over"]);
        let state = after(f::training(2), &[0.001, 0.004]);
        assert_eq!(slow(&state), [false; 2], "milliseconds are nobody's");
    }
}
