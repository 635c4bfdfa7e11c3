//! More ranks and fewer: which places a job takes when it waits for them, when it lost some, and when more come.

use super::{After, Command, Life, Member, Membership, transition::Step};
use crate::rendezvous::{Place, choose};
use common::ids::WorldSize;
use std::{collections::BTreeSet, time::Duration};

/// How long ranks hold the state of others that were lost when there are no places in their stead.
const HOLD: Duration = Duration::from_secs(600);
/// How long no spare is started after one that failed.
pub(super) const SPARE_PAUSE: Duration = Duration::from_secs(60);

impl Step {
    /// These places are free.
    pub(super) fn capacity(&mut self, free: &[Place]) {
        match self.state.life {
            Life::Queued { since, .. } => self.take_places(free, since),
            Life::Regrouping { .. } => self.regroup(Some(free)),
            Life::Running => self.start_spares(free),
            _ => {}
        }
    }

    /// Begins when there are as many as it was launched with, or after the grace with fewer.
    fn take_places(&mut self, free: &[Place], since: Option<common::time::Timestamp>) {
        let (least, most) = self.state.ranks();
        let count = u32::try_from(free.len()).unwrap_or(u32::MAX);
        let waited = since.map(|since| self.now.since(since)).unwrap_or_default();
        let enough = count >= self.state.world_size.0 || count >= least && waited >= self.grace();
        let world = if enough { count.min(most) } else { self.state.world_size.0 };
        match choose(free, WorldSize(world)) {
            Ok(places) => self.begin(places),
            Err(missing) => self.state.life = Life::Queued { free: missing.free, since },
        }
    }

    fn grace(&self) -> Duration {
        self.state.recipe.elastic.map(|elastic| elastic.grace).unwrap_or_default()
    }

    /// Looks for a place for every rank that is lost: of a spare that is ready, its own again where its machine lives, a free
    /// one. Goes on as soon as there is one for each, or with fewer ranks after the grace, once it is known that no more are
    /// free.
    pub(super) fn regroup(&mut self, free: Option<&[Place]>) {
        let Some(membership) = self.state.membership.as_ref() else { return };
        let since = if let Life::Regrouping { since, .. } = self.state.life { since } else { self.now };
        let waited = self.now.since(since);
        let places = stand_in(membership, free.unwrap_or_default());
        let (least, found) = (self.state.ranks().0 as usize, places.iter().flatten().count());
        let missing = places.len() - found;
        // Of a stop nothing is asked but the checkpoint.
        let fewer = free.is_some() && found >= least && least < places.len() && waited >= self.grace();
        let enough = missing == 0 || membership.stop || fewer;
        if enough {
            if missing > 0 {
                let ranks = if missing == 1 { "rank has" } else { "ranks have" };
                self.tell("shrunk", format!("{missing} {ranks} no place: goes on with {found}"));
            }
            self.go_on(places.into_iter().flatten().collect(), true);
        } else if waited >= HOLD {
            let seconds = HOLD.as_secs();
            self.tell("no-places", format!("there were no places for {missing} ranks within {seconds} s"));
            self.end_all(After::Requeue);
        } else {
            self.enter_regrouping(since, missing);
        }
    }

    fn enter_regrouping(&mut self, since: common::time::Timestamp, missing: usize) {
        let missing = u32::try_from(missing).unwrap_or(u32::MAX);
        if !matches!(self.state.life, Life::Regrouping { .. }) {
            let places = if missing == 1 { "place" } else { "places" };
            let held = if self.shards() { "" } else { " with the state in memory" };
            self.tell("regrouping", format!("waits for {missing} {places}{held}"));
        }
        self.state.life = Life::Regrouping { since, missing };
    }

    /// Begins the next membership on these places: what lives there keeps its process and the state in its memory, the rest is
    /// started. `broken` says that nobody can end a step in the membership before.
    pub(super) fn go_on(&mut self, places: Vec<Place>, broken: bool) {
        let before = self.state.membership.as_ref().map(|m| (m.newest_step(), m.stop, m.leaving));
        self.begin(places);
        if let (Some(membership), Some((held, stop, leaving))) = (self.state.membership.as_mut(), before) {
            (membership.held, membership.stop, membership.broken) = (Some(held), stop, broken);
            membership.leaving = leaving;
        }
    }

    /// Starts trainers beside the ranks, where the job may have more ranks, or wants spares.
    fn start_spares(&mut self, free: &[Place]) {
        let wanted = self.state.spares_wanted() as usize;
        // Of a membership that is about to be left nothing is made larger.
        let not_now = |m: &Membership| m.leaving || m.no_spares_before.is_some_and(|before| self.now < before);
        if wanted == 0 || !self.trains() || self.state.membership.as_ref().is_none_or(not_now) {
            return;
        }
        let taken =
            |place: &&Place| self.state.active().is_some_and(|m| m.everyone().any(|member| member.place == **place));
        let free: Vec<Place> = free.iter().filter(|place| !taken(place)).cloned().collect();
        let count = wanted.min(free.len());
        let Ok(places) = choose(&free, WorldSize(u32::try_from(count).unwrap_or(u32::MAX))) else { return };
        let Some(membership) = self.state.membership.as_mut().filter(|_| !places.is_empty()) else { return };
        let spares: Vec<Member> = places.into_iter().map(Member::new).collect();
        let key = |spare: &Member| membership.key(&self.state.job, spare);
        let output = &self.state.recipe.output;
        let start = |spare| Command::StartTrainer { trainer: key(spare), output: output.clone() };
        self.commands.extend(spares.iter().map(start));
        let told = spares.iter().map(|spare| spare.place.to_string()).collect::<Vec<_>>().join(", ");
        membership.spares.extend(spares);
        self.tell("spares", format!("starts trainers beside the ranks: {told}"));
    }

    /// A spare's process is gone.
    pub(super) fn spare_ended(&mut self, place: &Place, ours: bool) {
        let until = self.now.plus(SPARE_PAUSE);
        let Some(membership) = self.state.membership.as_mut() else { return };
        membership.spares.retain(|spare| spare.place != *place);
        if !ours {
            membership.no_spares_before = Some(until);
            self.tell("spare-lost", format!("a trainer beside the ranks ended on {place}"));
        }
        self.over_when_all_ended();
        self.grow();
    }

    /// Makes ranks of the spares that are ready, at the end of a step, if the job may have more.
    pub(super) fn grow(&mut self) {
        let most = self.state.ranks().1 as usize;
        let grows = matches!(self.state.life, Life::Running) && self.trains();
        let Some(membership) = self.state.membership.as_ref().filter(|_| grows) else { return };
        let world = membership.members.len();
        // All that were ordered come at once: one change of membership, not one for each.
        let starting = membership.spares.iter().any(|spare| spare.peer.is_none());
        let whole = membership.members.iter().all(|member| !member.ended && member.finished.is_none());
        let grown = world >= most || membership.spares.is_empty();
        if grown || starting || membership.leaving || !whole || !membership.advanced() {
            return;
        }
        let places = with_spares(membership, most);
        self.tell("growth", format!("goes on with {} ranks after the step at hand", places.len()));
        self.go_on(places, false);
    }

    /// The places for the next stage: those of the ranks, and of spares that are ready.
    pub(super) fn next_places(&self) -> Vec<Place> {
        let most = self.state.ranks().1 as usize;
        self.state.membership.as_ref().map(|membership| with_spares(membership, most)).unwrap_or_default()
    }
}

/// The places of the ranks, and of spares that are ready, at most so many.
fn with_spares(membership: &Membership, most: usize) -> Vec<Place> {
    let ready = membership.spares.iter().filter(|spare| spare.peer.is_some());
    let world = membership.members.len();
    membership.members.iter().chain(ready).take(most.max(world)).map(|member| member.place.clone()).collect()
}

/// A place for every rank; absent where there is none.
fn stand_in(membership: &Membership, free: &[Place]) -> Vec<Option<Place>> {
    let own = membership.members.iter().filter(|member| !member.gone).map(|member| &member.place);
    let taken: BTreeSet<&Place> = own.chain(membership.spares.iter().map(|spare| &spare.place)).collect();
    let mut spares = membership.spares.iter().filter(|spare| spare.peer.is_some()).map(|spare| spare.place.clone());
    let mut free = free.iter().filter(|place| !taken.contains(place)).cloned();
    let place = |member: &Member| match (member.ended, member.gone) {
        (false, _) => Some(member.place.clone()),
        (true, false) => spares.next().or_else(|| Some(member.place.clone())),
        (true, true) => spares.next().or_else(|| free.next()),
    };
    membership.members.iter().map(place).collect()
}
