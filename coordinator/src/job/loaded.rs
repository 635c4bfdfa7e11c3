//! What a record means to a coordinator that has just read it.

use super::{JobState, Life, budget::LONGEST_WAIT, elastic::SPARE_PAUSE, ending::GRACE};
use common::time::Timestamp;

/// A job as its new coordinator takes it up at `now`: each wait begins anew. The times in the record are another coordinator's,
/// whose clock may have been an hour off, and for how long nobody looked is not known: what was merely late then is not late now.
pub fn loaded(mut state: JobState, now: Timestamp) -> JobState {
    match &mut state.life {
        Life::BackOff { until } => *until = (*until).min(now.plus(LONGEST_WAIT)),
        Life::Ending { grace_until, .. } => *grace_until = now.plus(GRACE),
        Life::Queued { since, .. } => *since = since.map(|_| now),
        Life::Regrouping { since, .. } => *since = now,
        _ => {}
    }
    if let Some(membership) = state.membership.as_mut() {
        membership.since = now;
        membership.moved = membership.moved.map(|_| now);
        membership.no_spares_before = membership.no_spares_before.map(|before| before.min(now.plus(SPARE_PAUSE)));
        for member in &mut membership.members {
            member.missing = member.missing.map(|_| now);
            member.silent = member.silent.map(|_| now);
            if let Some(apart) = member.apart.as_mut() {
                apart.since = now;
            }
        }
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Event, fixture as f, transition};
    use std::time::Duration;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn what_was_late_by_another_clock_is_not_late_by_this_one() {
        let later = f::NOW.plus(HOUR);
        let starting = f::starting(2);
        let (given_up, _) = transition(&starting, Event::Tick, later);
        assert_ne!(given_up.life, starting.life, "an hour is too long to start");
        let taken_up = loaded(starting, later);
        let (same, commands) = transition(&taken_up, Event::Tick, later);
        assert_eq!((same.life, commands), (taken_up.life, Vec::new()));
    }

    #[test]
    fn a_wait_that_another_clock_put_far_ahead_is_cut() {
        let mut state = f::submitted(2);
        state.life = Life::BackOff { until: f::NOW.plus(HOUR) };
        assert_eq!(loaded(state, f::NOW).life, Life::BackOff { until: f::NOW.plus(LONGEST_WAIT) });
    }
}
