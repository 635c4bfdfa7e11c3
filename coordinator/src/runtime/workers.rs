//! The workers: their sessions, their leases, what runs on them.

use super::input::{Incarnation, Opening, SessionId};
use crate::{
    job::Command,
    rendezvous::{Machine, Place},
};
use common::{
    ids::{Generation, JobId, Slot, WorkerId},
    refusal::Refusal,
    status::{Barred, Inventory, WorkerStatus},
    time::Timestamp,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};

/// How long a worker that is gone is remembered. A machine that never comes back, or comes back under another name, must not
/// stay for ever.
const FORGET: Duration = Duration::from_secs(3600);

/// All workers that are known.
#[derive(Default)]
pub(super) struct Workers {
    known: BTreeMap<WorkerId, Worker>,
    sessions: u64,
}

struct Worker {
    /// Absent for one that has not registered with this coordinator.
    incarnation: Option<Incarnation>,
    /// Absent for one that only a job's record names.
    inventory: Option<Inventory>,
    session: Option<(SessionId, mpsc::Sender<Command>)>,
    seen: Timestamp,
    heard: Instant,
    lost: bool,
    /// Its machine is being taken away; a new session is of one that is not.
    leaving: bool,
    occupied: BTreeMap<Slot, (JobId, Generation)>,
}

impl Workers {
    /// A job's record names this worker: it has one lease's time from `at` on to come back.
    pub(super) fn expect(&mut self, worker: &WorkerId, now: Timestamp, at: Instant) {
        self.known.entry(worker.clone()).or_insert_with(|| Worker {
            incarnation: None,
            inventory: None,
            session: None,
            seen: now,
            heard: at,
            lost: false,
            leaving: false,
            occupied: BTreeMap::new(),
        });
    }

    /// Why a daemon is not the worker that it says it is; absent when it may be. Two daemons under one id must not take the
    /// session from each other in turns: each time the other one's trainers would count as gone.
    pub(super) fn refuses(&self, opening: &Opening) -> Option<Refusal> {
        let known = self.known.get(&opening.worker)?;
        let (before, now) = (known.incarnation.as_ref()?, &opening.incarnation);
        let holder = known.inventory.as_ref()?.host.clone();
        if before.instance == now.instance {
            return (now.number < before.number).then_some(Refusal::OldIncarnation { holder });
        }
        // One that has said farewell is replaced at once, as a pod is by its successor.
        let gone = known.lost || (known.leaving && known.session.is_none());
        (!gone).then_some(Refusal::Duplicate { holder })
    }

    /// A session begins; the one before ends.
    pub(super) fn open(
        &mut self,
        opening: &Opening,
        outbox: mpsc::Sender<Command>,
        now: Timestamp,
        at: Instant,
    ) -> SessionId {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let occupied = opening.living.iter().map(|(job, trainer)| (trainer.slot, (job.clone(), trainer.generation)));
        let worker = Worker {
            incarnation: Some(opening.incarnation.clone()),
            inventory: Some(opening.inventory.clone()),
            session: Some((session, outbox)),
            seen: now,
            heard: at,
            lost: false,
            leaving: false,
            occupied: occupied.collect(),
        };
        self.known.insert(opening.worker.clone(), worker);
        session
    }

    /// The session said something; false when it is not the worker's.
    pub(super) fn heard(&mut self, worker: &WorkerId, session: SessionId, now: Timestamp, at: Instant) -> bool {
        let Some(worker) = self.known.get_mut(worker) else { return false };
        if worker.session.as_ref().is_none_or(|(current, _)| *current != session) {
            return false;
        }
        (worker.seen, worker.heard) = (now, at);
        true
    }

    /// Its machine is being taken away.
    pub(super) fn leaves(&mut self, worker: &WorkerId) {
        if let Some(worker) = self.known.get_mut(worker) {
            worker.leaving = true;
        }
    }

    /// Whether its machine is being taken away.
    pub(super) fn is_leaving(&self, worker: &WorkerId) -> bool {
        self.known.get(worker).is_some_and(|worker| worker.leaving)
    }

    /// Whether it is or was there.
    pub(super) fn knows(&self, worker: &WorkerId) -> bool {
        self.known.contains_key(worker)
    }

    /// The session's connection ended.
    pub(super) fn closed(&mut self, worker: &WorkerId, session: SessionId) {
        if let Some(worker) = self.known.get_mut(worker)
            && worker.session.as_ref().is_some_and(|(current, _)| *current == session)
        {
            worker.session = None;
        }
    }

    /// Sends a command. A worker that does not take it loses its session, and gets what is owed when it comes back.
    pub(super) fn send(&mut self, command: Command) {
        let place = command.trainer().place.clone();
        let Some(worker) = self.known.get_mut(&place.worker) else { return };
        let Some((_, outbox)) = &worker.session else { return };
        if outbox.try_send(command).is_err() {
            tracing::warn!(worker = %place.worker, "closed a session that takes no commands");
            worker.session = None;
        }
    }

    /// For so long until `at` nobody could be heard.
    pub(super) fn forgive(&mut self, gap: Duration, at: Instant) {
        for worker in self.known.values_mut().filter(|worker| worker.heard < at) {
            worker.heard = (worker.heard + gap).min(at);
        }
    }

    /// The workers whose lease lapsed since this was last asked.
    pub(super) fn lapsed(&mut self, lease: Duration, at: Instant) -> Vec<WorkerId> {
        let mut lapsed = Vec::new();
        self.known.retain(|_, worker| !worker.lost || at.saturating_duration_since(worker.heard) <= FORGET);
        for (id, worker) in &mut self.known {
            if !worker.lost && at.saturating_duration_since(worker.heard) > lease {
                worker.lost = true;
                worker.session = None;
                worker.occupied.clear();
                lapsed.push(id.clone());
            }
        }
        lapsed
    }

    /// A trainer runs on this place.
    pub(super) fn occupy(&mut self, place: &Place, job: &JobId, generation: Generation) {
        if let Some(worker) = self.known.get_mut(&place.worker) {
            worker.occupied.insert(place.slot, (job.clone(), generation));
        }
    }

    /// The trainer of this generation no longer runs there.
    pub(super) fn vacate(&mut self, place: &Place, job: &JobId, generation: Generation) {
        if let Some(worker) = self.known.get_mut(&place.worker)
            && worker.occupied.get(&place.slot).is_some_and(|(other, newest)| other == job && *newest <= generation)
        {
            worker.occupied.remove(&place.slot);
        }
    }

    /// The connected ones, with their size.
    pub(super) fn machines(&self) -> Vec<Machine> {
        let connected = self.known.iter().filter(|(_, worker)| worker.session.is_some());
        let sized = connected.filter_map(|(id, worker)| Some((id, worker.inventory.as_ref()?)));
        sized.map(|(id, inventory)| Machine { worker: id.clone(), trainers: inventory.trainers }).collect()
    }

    /// Places where a trainer is known to run.
    pub(super) fn occupied(&self) -> BTreeSet<Place> {
        let slots = self.known.iter().flat_map(|(id, worker)| worker.occupied.keys().map(move |slot| (id, *slot)));
        slots.map(|(id, slot)| Place { worker: id.clone(), slot }).collect()
    }

    /// What to show of them. `ordered` are places that jobs hold, whether or not a trainer runs there yet.
    pub(super) fn statuses(&self, ordered: &BTreeMap<Place, JobId>) -> Vec<WorkerStatus> {
        let registered = self.known.iter().filter_map(|(id, worker)| Some((id, worker, worker.inventory.as_ref()?)));
        registered
            .map(|(id, worker, inventory)| {
                let mut busy: BTreeMap<Slot, JobId> =
                    worker.occupied.iter().map(|(slot, (job, _))| (*slot, job.clone())).collect();
                let here = ordered.iter().filter(|(place, _)| place.worker == *id);
                busy.extend(here.map(|(place, job)| (place.slot, job.clone())));
                WorkerStatus {
                    worker: id.clone(),
                    inventory: inventory.clone(),
                    connected: worker.session.is_some(),
                    seen: worker.seen,
                    busy: busy.into_iter().collect(),
                    barred: worker.leaving.then_some(Barred::Leaving),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Timestamp = Timestamp(1);

    fn opening(instance: &str, number: u64) -> Opening {
        let inventory = Inventory {
            host: format!("host-of-{instance}"),
            trainers: 1,
            gpus: Vec::new(),
            cores: 1,
            memory_bytes: 1,
            version: "0".into(),
        };
        let incarnation = Incarnation { instance: instance.to_owned(), number };
        Opening { worker: "w".parse().unwrap(), incarnation, inventory, living: Vec::new() }
    }

    fn open(workers: &mut Workers, opening: &Opening) -> SessionId {
        workers.open(opening, mpsc::channel(1).0, AT, Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_daemons_under_one_id_the_living_one_keeps_it() {
        let (lease, mut workers) = (Duration::from_secs(5), Workers::default());
        let (a, b) = (opening("a", 7), opening("b", 9));
        let duplicate = Some(Refusal::Duplicate { holder: "host-of-a".into() });
        assert_eq!(workers.refuses(&a), None, "nobody has it");
        let session = open(&mut workers, &a);
        assert_eq!((workers.refuses(&a), workers.refuses(&b)), (None, duplicate.clone()));
        workers.closed(&a.worker, session);
        assert_eq!(workers.refuses(&b), duplicate, "it may be starting again");
        tokio::time::advance(lease * 2).await;
        assert_eq!(workers.lapsed(lease, Instant::now()), std::slice::from_ref(&a.worker));
        assert_eq!(workers.refuses(&b), None);
        let session = open(&mut workers, &b);
        assert!(matches!(workers.refuses(&a), Some(Refusal::Duplicate { .. })), "now it is the other one's");
        workers.leaves(&b.worker);
        assert!(workers.refuses(&a).is_some(), "it saves its checkpoint still");
        workers.closed(&b.worker, session);
        assert_eq!(workers.refuses(&a), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_a_later_one_of_its_folder_replaced_is_refused_for_ever() {
        let (lease, mut workers) = (Duration::from_secs(5), Workers::default());
        let (old, new) = (opening("a", 7), opening("a", 8));
        open(&mut workers, &old);
        assert_eq!(workers.refuses(&new), None, "a restart");
        open(&mut workers, &new);
        let refused = Some(Refusal::OldIncarnation { holder: "host-of-a".into() });
        assert_eq!((workers.refuses(&old), workers.refuses(&new)), (refused.clone(), None));
        tokio::time::advance(lease * 2).await;
        workers.lapsed(lease, Instant::now());
        assert_eq!(workers.refuses(&old), refused);
    }

    #[test]
    fn whom_only_a_record_names_may_be_anybody() {
        let (mut workers, a) = (Workers::default(), opening("a", 7));
        workers.expect(&a.worker, AT, Instant::now());
        assert_eq!(workers.refuses(&a), None);
    }
}
