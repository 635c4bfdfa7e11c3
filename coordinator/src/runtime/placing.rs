//! Which places jobs hold, and which are free.

use super::{jobs::Jobs, workers::Workers};
use crate::{
    job::Membership,
    rendezvous::{Place, free},
};
use common::ids::JobId;
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
