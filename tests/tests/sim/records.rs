//! The coordinators' store, as they see it over a network: slow, out of reach, with outcomes that are not known, and durable
//! when it says so.

use super::{
    bugs::Bug,
    check,
    world::{Shared, World},
};
use coordinator::store::{Change, Entry, Fence, LeaseId, Listing, Put, Revision, Store, StoreError};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

/// How long a coordinator tries to reach the store.
const DEADLINE: Duration = Duration::from_secs(5);
/// How many changes are kept.
const HISTORY: usize = 256;

/// What the store holds.
#[derive(Debug, Default)]
pub struct Records {
    pub entries: BTreeMap<String, Entry>,
    pub revision: u64,
    leases: BTreeMap<LeaseId, Lease>,
    newest_lease: u64,
    watchers: Vec<(String, mpsc::Sender<Change>)>,
    history: VecDeque<Change>,
    /// Coordinators that do not reach it.
    pub cut: BTreeSet<usize>,
    /// A request takes between so and so many milliseconds each way.
    pub takes: (u64, u64),
    /// Of a hundred requests so many are late by seconds.
    pub late: u64,
    /// Of a hundred writes so many are made without an answer.
    pub unknown: u64,
    /// How often that happened.
    pub unknowns: u64,
    /// Writes on their way.
    flying: Vec<Flying>,
    /// Writes that came from a leader when it was none any more.
    pub fenced: u64,
    /// What a crash of its writer undoes; empty unless a bug is on.
    undurable: Vec<Undurable>,
}

/// A write on its way. It arrives, whatever became of its sender.
struct Flying {
    arrives: Duration,
    act: Box<dyn FnOnce(&mut World) + Send>,
}

impl std::fmt::Debug for Flying {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a write that arrives at {:?}", self.arrives)
    }
}

#[derive(Debug)]
struct Undurable {
    who: usize,
    durable_at: Duration,
    key: String,
    before: Option<Entry>,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    until: Duration,
}

impl Records {
    /// An empty store that answers within so and so many milliseconds each way.
    pub fn answering_in(takes: (u64, u64)) -> Self {
        Self { takes, ..Self::default() }
    }

    /// The revision that holds a key.
    pub fn revision_of(&self, key: &str) -> Option<Revision> {
        self.entries.get(key).map(|entry| entry.revision)
    }

    fn commit(&mut self, change: Change) {
        self.revision = change.revision().0;
        match &change {
            Change::Put(entry) => drop(self.entries.insert(entry.key.clone(), entry.clone())),
            Change::Deleted { key, .. } => drop(self.entries.remove(key)),
        }
        let told = |watcher: &(String, mpsc::Sender<Change>)| {
            !change.key().starts_with(&watcher.0) || watcher.1.try_send(change.clone()).is_ok()
        };
        self.watchers.retain(|watcher| !watcher.1.is_closed() && told(watcher));
        self.history.push_back(change);
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
    }

    fn end_lease(&mut self, lease: LeaseId) -> bool {
        let found = self.leases.remove(&lease).is_some();
        let keys: Vec<String> =
            self.entries.values().filter(|entry| entry.lease == Some(lease)).map(|entry| entry.key.clone()).collect();
        for key in keys {
            let revision = Revision(self.revision + 1);
            self.commit(Change::Deleted { key, revision });
        }
        found
    }

    /// How much there is of everything.
    pub fn sizes(&self) -> [usize; 4] {
        [self.entries.len(), self.leases.len(), self.watchers.len(), self.history.len()]
    }
}

impl World {
    /// Leases lapse.
    pub fn expire(&mut self) {
        let now = self.now;
        let over: Vec<LeaseId> =
            self.records.leases.iter().filter(|(_, lease)| lease.until <= now).map(|(id, _)| *id).collect();
        for lease in over {
            self.records.end_lease(lease);
            self.say(&format!("the store's lease {lease} lapses"));
        }
        self.records.undurable.retain(|write| write.durable_at > now);
    }

    /// Writes arrive.
    pub fn land(&mut self) {
        let now = self.now;
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.records.flying).into_iter().partition(|write| write.arrives <= now);
        self.records.flying = later;
        for write in due {
            (write.act)(self);
        }
    }

    /// A coordinator crashes: what was not durable of its writes is forgotten.
    pub fn forget_undurable(&mut self, who: usize) {
        let all = std::mem::take(&mut self.records.undurable);
        let (lost, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(|write| write.who == who);
        self.records.undurable = kept;
        for write in lost.into_iter().rev() {
            match write.before {
                Some(entry) => drop(self.records.entries.insert(write.key, entry)),
                None => drop(self.records.entries.remove(&write.key)),
            }
        }
    }
}

/// The store of one coordinator.
#[derive(Clone)]
pub struct SimStore {
    pub shared: Shared,
    pub who: usize,
    pub fence: Option<Fence>,
}

impl SimStore {
    /// The way there, the operation, the way back.
    async fn exchange<T: Send>(
        &self,
        operation: &'static str,
        act: impl FnOnce(&mut World) -> Result<T, StoreError> + Send,
    ) -> Result<T, StoreError> {
        let (there, back, unknown) = self.times(operation != "read");
        sleep(there).await;
        if self.shared.lock().records.cut.contains(&self.who) {
            return Err(Self::unanswered(operation).await);
        }
        let result = act(&mut self.shared.lock());
        self.answered(operation, result, back, unknown).await
    }

    /// As [`SimStore::exchange`], of a write that does not need its sender once it was sent.
    async fn send<T: Send + 'static>(
        &self,
        operation: &'static str,
        act: impl FnOnce(&mut World) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let (there, back, unknown) = self.times(true);
        {
            let mut world = self.shared.lock();
            let (arrives, who) = (world.now + there, self.who);
            let act = Box::new(move |world: &mut World| {
                if !world.records.cut.contains(&who) {
                    // Nobody may wait any more.
                    drop(answer.send(act(world)));
                }
            });
            world.records.flying.push(Flying { arrives, act });
        }
        let Ok(result) = answered.await else { return Err(Self::unanswered(operation).await) };
        self.answered(operation, result, back, unknown).await
    }

    /// How long the way there and back takes, and whether the answer to a write is lost.
    fn times(&self, writes: bool) -> (Duration, Duration, bool) {
        let mut world = self.shared.lock();
        let (low, high) = world.records.takes;
        let late = world.records.late;
        let mut there = world.rng.millis(low, high);
        if world.rng.percent(late) {
            there += world.rng.millis(3000, 14_000);
        }
        let (share, drawn) = (world.records.unknown, world.rng.below(100));
        (there, world.rng.millis(low, high), writes && drawn < share)
    }

    /// The way back.
    async fn answered<T>(
        &self,
        operation: &'static str,
        result: Result<T, StoreError>,
        back: Duration,
        unknown: bool,
    ) -> Result<T, StoreError> {
        if unknown {
            self.shared.lock().records.unknowns += 1;
            return Err(Self::unanswered(operation).await);
        }
        sleep(back).await;
        if self.shared.lock().records.cut.contains(&self.who) {
            return Err(Self::unanswered(operation).await);
        }
        result
    }

    async fn unanswered(operation: &'static str) -> StoreError {
        sleep(DEADLINE).await;
        let (endpoints, last) = ("the simulated store".to_owned(), "nothing".to_owned());
        StoreError::Deadline { operation, endpoints, waited: DEADLINE, last }
    }

    fn hold(&self, world: &mut World, key: &str) -> Result<(), StoreError> {
        let Some(fence) = &self.fence else { return Ok(()) };
        let found = world.records.revision_of(&fence.key);
        if found == Some(fence.revision) || world.bug == Bug::NoFence {
            return Ok(());
        }
        world.records.fenced += 1;
        let (fence, expected) = (fence.key.clone(), fence.revision);
        Err(StoreError::Fenced { key: key.to_owned(), fence, expected, found })
    }

    fn expect(world: &World, key: &str, expected: Option<Revision>) -> Result<(), StoreError> {
        let found = world.records.revision_of(key);
        if found == expected { Ok(()) } else { Err(StoreError::Conflict { key: key.to_owned(), expected, found }) }
    }

    fn put(&self, world: &mut World, put: Put) -> Result<Revision, StoreError> {
        self.hold(world, &put.key)?;
        Self::expect(world, &put.key, put.expected)?;
        if let Some(lease) = put.lease.filter(|lease| !world.records.leases.contains_key(lease)) {
            return Err(StoreError::NoLease(lease));
        }
        let revision = Revision(world.records.revision + 1);
        let entry = Entry { key: put.key, value: put.value, revision, lease: put.lease };
        let before = world.records.entries.get(&entry.key).cloned();
        if world.bug == Bug::CommandBeforeStore && entry.lease.is_none() {
            let durable_at = world.now + world.rng.millis(100, 2000);
            let (who, key) = (self.who, entry.key.clone());
            world.records.undurable.push(Undurable { who, durable_at, key, before: before.clone() });
        }
        check::stored(world, self.fence.as_ref(), before.as_ref(), &entry);
        world.records.commit(Change::Put(entry));
        Ok(revision)
    }
}

impl Store for SimStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.exchange("read", |world| Ok(world.records.entries.get(key).cloned())).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.exchange("read", |world| {
            let below = world.records.entries.range(prefix.to_owned()..);
            let entries = below.take_while(|(key, _)| key.starts_with(prefix)).map(|(_, entry)| entry.clone());
            Ok(Listing { entries: entries.collect(), revision: Revision(world.records.revision) })
        })
        .await
    }

    async fn put_if(&self, put: Put) -> Result<Revision, StoreError> {
        let store = self.clone();
        self.send("write", move |world| store.put(world, put)).await
    }

    async fn delete_if(&self, key: &str, expected: Revision) -> Result<Revision, StoreError> {
        self.exchange("delete", |world| {
            self.hold(world, key)?;
            Self::expect(world, key, Some(expected))?;
            let revision = Revision(world.records.revision + 1);
            world.records.commit(Change::Deleted { key: key.to_owned(), revision });
            Ok(revision)
        })
        .await
    }

    fn fenced(&self, fence: Fence) -> Self {
        Self { fence: Some(fence), ..self.clone() }
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<mpsc::Receiver<Change>, StoreError> {
        let (told, changes) = mpsc::channel(HISTORY * 2);
        self.exchange("read", |world| {
            let oldest = world.records.history.front().map_or(Revision(world.records.revision + 1), Change::revision);
            if after.0 + 1 < oldest.0 {
                return Err(StoreError::Compacted { after, oldest: Some(oldest) });
            }
            let past = world.records.history.iter();
            for change in past.filter(|change| change.revision() > after && change.key().starts_with(prefix)) {
                let _ = told.try_send(change.clone());
            }
            world.records.watchers.push((prefix.to_owned(), told));
            Ok(())
        })
        .await?;
        Ok(changes)
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.exchange("grant a lease", |world| {
            world.records.newest_lease += 1;
            let lease = LeaseId(world.records.newest_lease);
            let ttl = if world.bug == Bug::LeaseTooLong { ttl / 3 } else { ttl };
            world.records.leases.insert(lease, Lease { ttl, until: world.now + ttl });
            Ok(lease)
        })
        .await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.exchange("keep a lease alive", |world| {
            let now = world.now;
            let held = world.records.leases.get_mut(&lease).ok_or(StoreError::NoLease(lease))?;
            held.until = now + held.ttl;
            Ok(())
        })
        .await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.exchange("revoke a lease", |world| {
            if world.records.end_lease(lease) { Ok(()) } else { Err(StoreError::NoLease(lease)) }
        })
        .await
    }
}
