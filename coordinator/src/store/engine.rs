//! The machinery that the stores of this process share: the map, its revisions, watchers and leases. Durability is left
//! to a [`Journal`].

use super::{
    StoreError,
    contract::{Change, Entry, Fence, LeaseId, Listing, Put, Revision},
    history::History,
    lease::Leases,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};

/// How far a watcher may fall behind.
const WATCH_QUEUE: usize = 256;

/// Makes changes durable, before they become visible.
pub(super) trait Journal: Send + 'static {
    /// Writes changes that belong together.
    fn write(&mut self, changes: &[Change]) -> Result<(), StoreError>;
    /// Writes a lease, or with `None` that it is gone.
    fn lease(&mut self, lease: LeaseId, ttl: Option<Duration>) -> Result<(), StoreError>;
}

/// What a journal had on disk.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) entries: Vec<Entry>,
    pub(super) revision: Revision,
    pub(super) leases: Vec<(LeaseId, Duration)>,
}

/// A store's state behind its lock.
pub(super) struct Engine<J> {
    inner: Arc<Mutex<Inner<J>>>,
    /// What must hold for each write of this one.
    fence: Option<Fence>,
}

impl<J> Clone for Engine<J> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), fence: self.fence.clone() }
    }
}

struct Inner<J> {
    journal: J,
    entries: BTreeMap<String, Entry>,
    revision: Revision,
    leases: Leases,
    newest_lease: u64,
    history: History,
    watchers: Vec<Watcher>,
}

struct Watcher {
    prefix: String,
    queue: mpsc::Sender<Change>,
}

impl<J: Journal> Engine<J> {
    /// Goes on from what the journal had. Leases begin their time anew: only this process could have kept them.
    pub(super) fn new(journal: J, loaded: Loaded) -> Self {
        let mut leases = Leases::default();
        let now = Instant::now();
        for (lease, ttl) in &loaded.leases {
            leases.add(*lease, *ttl, now);
        }
        let inner = Inner {
            journal,
            entries: loaded.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect(),
            revision: loaded.revision,
            leases,
            newest_lease: loaded.leases.iter().map(|(lease, _)| lease.0).max().unwrap_or(0),
            history: History::default(),
            watchers: Vec::new(),
        };
        let engine = Self { inner: Arc::new(Mutex::new(inner)), fence: None };
        loaded.leases.iter().for_each(|(lease, _)| engine.mind(*lease));
        engine
    }

    fn lock(&self) -> MutexGuard<'_, Inner<J>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn fenced(&self, fence: Fence) -> Self {
        Self { inner: self.inner.clone(), fence: Some(fence) }
    }

    /// Runs `work` where it may block.
    pub(super) async fn blocking<T, W>(&self, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    {
        let engine = self.clone();
        tokio::task::spawn_blocking(move || work(&engine)).await.map_err(|_| StoreError::Closed)?
    }

    pub(super) fn get(&self, key: &str) -> Option<Entry> {
        self.lock().entries.get(key).cloned()
    }

    pub(super) fn list(&self, prefix: &str) -> Listing {
        let inner = self.lock();
        let below = inner.entries.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        Listing { entries: below.map(|(_, entry)| entry.clone()).collect(), revision: inner.revision }
    }

    pub(super) fn put_if(&self, put: Put) -> Result<Revision, StoreError> {
        let mut inner = self.lock();
        inner.hold(self.fence.as_ref(), &put.key)?;
        inner.expect(&put.key, put.expected)?;
        if let Some(lease) = put.lease {
            inner.leases.check(lease)?;
        }
        let revision = Revision(inner.revision.0 + 1);
        let entry = Entry { key: put.key, value: put.value, revision, lease: put.lease };
        inner.commit(vec![Change::Put(entry)])?;
        Ok(revision)
    }

    pub(super) fn delete_if(&self, key: &str, expected: Revision) -> Result<Revision, StoreError> {
        let mut inner = self.lock();
        inner.hold(self.fence.as_ref(), key)?;
        inner.expect(key, Some(expected))?;
        let revision = Revision(inner.revision.0 + 1);
        inner.commit(vec![Change::Deleted { key: key.to_owned(), revision }])?;
        Ok(revision)
    }

    pub(super) fn watch(&self, prefix: &str, after: Revision) -> Result<mpsc::Receiver<Change>, StoreError> {
        let mut inner = self.lock();
        let oldest = inner.history.oldest().unwrap_or(Revision(inner.revision.0 + 1));
        if after.0 + 1 < oldest.0 {
            return Err(StoreError::Compacted { after, oldest: Some(oldest) });
        }
        let past = inner.history.after(after).filter(|change| change.key().starts_with(prefix));
        let past: Vec<Change> = past.cloned().collect();
        let (queue, receiver) = mpsc::channel(WATCH_QUEUE + past.len());
        for change in past {
            // There is room: the queue is longer than the past.
            let _ = queue.try_send(change);
        }
        inner.watchers.push(Watcher { prefix: prefix.to_owned(), queue });
        Ok(receiver)
    }

    pub(super) fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let lease = {
            let mut inner = self.lock();
            let lease = LeaseId(inner.newest_lease + 1);
            inner.journal.lease(lease, Some(ttl))?;
            inner.newest_lease = lease.0;
            inner.leases.add(lease, ttl, Instant::now());
            lease
        };
        self.mind(lease);
        Ok(lease)
    }

    pub(super) fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.lock().leases.keep_alive(lease, Instant::now())
    }

    pub(super) fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.lock().end_lease(lease)
    }

    /// Ends the lease when its time is over. The task ends with the lease or the store.
    fn mind(&self, lease: LeaseId) {
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            while let Some(until) = deadline(&inner, lease) {
                tokio::time::sleep_until(until).await;
                let Some(inner) = inner.upgrade() else { return };
                let ended = tokio::task::spawn_blocking(move || lapse(&inner, lease)).await;
                if let Ok(Err(error)) = ended {
                    tracing::error!(lease = lease.0, %error, "could not end a lapsed lease");
                    return;
                }
            }
        });
    }
}

fn deadline<J>(inner: &Weak<Mutex<Inner<J>>>, lease: LeaseId) -> Option<Instant> {
    inner.upgrade()?.lock().unwrap_or_else(PoisonError::into_inner).leases.until(lease)
}

fn lapse<J: Journal>(inner: &Mutex<Inner<J>>, lease: LeaseId) -> Result<(), StoreError> {
    let mut inner = inner.lock().unwrap_or_else(PoisonError::into_inner);
    match inner.leases.until(lease) {
        Some(until) if until <= Instant::now() => inner.end_lease(lease),
        _ => Ok(()),
    }
}

impl<J: Journal> Inner<J> {
    fn hold(&self, fence: Option<&Fence>, key: &str) -> Result<(), StoreError> {
        let Some(fence) = fence else { return Ok(()) };
        let found = self.entries.get(&fence.key).map(|entry| entry.revision);
        if found == Some(fence.revision) {
            return Ok(());
        }
        let (fence, expected) = (fence.key.clone(), fence.revision);
        Err(StoreError::Fenced { key: key.to_owned(), fence, expected, found })
    }

    fn expect(&self, key: &str, expected: Option<Revision>) -> Result<(), StoreError> {
        let found = self.entries.get(key).map(|entry| entry.revision);
        if found == expected { Ok(()) } else { Err(StoreError::Conflict { key: key.to_owned(), expected, found }) }
    }

    /// Durable first, then visible, then told.
    fn commit(&mut self, changes: Vec<Change>) -> Result<(), StoreError> {
        self.journal.write(&changes)?;
        for change in changes {
            self.revision = change.revision();
            match &change {
                Change::Put(entry) => drop(self.entries.insert(entry.key.clone(), entry.clone())),
                Change::Deleted { key, .. } => drop(self.entries.remove(key)),
            }
            self.watchers.retain(|watcher| {
                !watcher.queue.is_closed()
                    && (!change.key().starts_with(&watcher.prefix) || watcher.queue.try_send(change.clone()).is_ok())
            });
            self.history.push(change);
        }
        Ok(())
    }

    fn end_lease(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        self.leases.check(lease)?;
        self.journal.lease(lease, None)?;
        let keys = self.entries.values().filter(|entry| entry.lease == Some(lease)).map(|entry| entry.key.clone());
        let keys: Vec<String> = keys.collect();
        let first = self.revision.0 + 1;
        let deleted =
            keys.into_iter().zip(first..).map(|(key, revision)| Change::Deleted { key, revision: Revision(revision) });
        self.commit(deleted.collect())?;
        self.leases.remove(lease)
    }
}
