//! Which places jobs hold, and which are free.

use super::{jobs::Jobs, workers::Workers};
use crate::{
    job::Membership,
    rendezvous::{Place, free},
};
use common::{
    ids::{JobId, WorkerId},
    status::Barred,
};
use std::collections::BTreeMap;

/// The places of every generation whose processes are not all known to be gone.
pub(super) fn held(jobs: &Jobs) -> BTreeMap<Place, JobId> {
    let mut held = BTreeMap::new();
    for state in jobs.states() {
        let members = state.active().into_iter().flat_map(Membership::everyone);
        held.extend(members.filter(|member| !member.ended).map(|member| (member.place.clone(), state.job.clone())));
    }
    held
}

/// The places of connected workers where no trainer runs or is ordered.
pub(super) fn free_places(jobs: &Jobs, workers: &Workers) -> Vec<Place> {
    let mut busy = workers.occupied();
    busy.extend(held(jobs).into_keys());
    free(&workers.machines(), &busy)
}

/// What a job is offered of the free places: those of machines that nothing is held against, and of machines in quarantine only as
/// many as it cannot do without. A machine that is doubted is better than none: faults of a program are faults on every machine.
pub(super) fn offered(free: Vec<Place>, needed: usize, barred: impl Fn(&WorkerId) -> Option<Barred>) -> Vec<Place> {
    let (mut offered, doubted): (Vec<_>, Vec<_>) = free
        .into_iter()
        .filter_map(|place| match barred(&place.worker) {
            None => Some((place, false)),
            Some(Barred::Quarantined { .. }) => Some((place, true)),
            Some(Barred::Drained | Barred::Leaving) => None,
        })
        .partition(|(_, doubted)| !doubted);
    offered.extend(doubted.into_iter().take(needed.saturating_sub(offered.len())));
    offered.into_iter().map(|(place, _)| place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::{ids::Slot, time::Timestamp};

    #[test]
    fn a_machine_in_quarantine_is_taken_where_there_is_no_other_and_one_that_is_drained_never() {
        let place = |worker: &str| Place { worker: worker.parse().unwrap(), slot: Slot(0) };
        let barred = |worker: &WorkerId| match worker.as_str() {
            "doubted-1" | "doubted-2" => Some(Barred::Quarantined { until: Timestamp(9), faults: 3 }),
            "drained" => Some(Barred::Drained),
            "leaving" => Some(Barred::Leaving),
            _ => None,
        };
        let check = |needed: usize, expected: &[&str]| {
            let all = ["doubted-1", "doubted-2", "drained", "leaving", "sound"].map(place).to_vec();
            assert_eq!(offered(all, needed, barred), expected.iter().map(|worker| place(worker)).collect::<Vec<_>>());
        };
        check(0, &["sound"]);
        check(1, &["sound"]);
        check(2, &["sound", "doubted-1"]);
        check(9, &["sound", "doubted-1", "doubted-2"]);
    }
}
