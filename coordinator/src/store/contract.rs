//! The contract of every store.

use super::StoreError;
use std::{fmt, future::Future, time::Duration};
use tokio::sync::mpsc;

/// A point in the store's history. Every change makes a higher one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Names a lease of this store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A key and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key, such as `/llm2clip/v1/jobs/demo-7k3q`.
    pub key: String,
    /// Its bytes.
    pub value: Vec<u8>,
    /// The change that wrote it.
    pub revision: Revision,
    /// The lease it hangs on; absent means that it stays until it is deleted.
    pub lease: Option<LeaseId>,
}

/// Everything below a prefix at one point of history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// By key.
    pub entries: Vec<Entry>,
    /// The store's newest change; a watch from here misses nothing.
    pub revision: Revision,
}

/// A compare-and-put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// The key.
    pub key: String,
    /// The bytes to write.
    pub value: Vec<u8>,
    /// The revision the key must have; absent means that it must not exist.
    pub expected: Option<Revision>,
    /// The lease it hangs on; absent means that it stays.
    pub lease: Option<LeaseId>,
}

/// What must still hold when a write is applied: that a key is as its holder wrote it. A leader's key goes with its lease, and
/// a key that is written anew has another revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The key, which its holder creates and never writes again.
    pub key: String,
    /// The change that created it.
    pub revision: Revision,
}

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The key was written.
    Put(Entry),
    /// The key was deleted, or its lease ended.
    Deleted {
        /// Which.
        key: String,
        /// The change that deleted it.
        revision: Revision,
    },
}

impl Change {
    /// The key it is about.
    pub fn key(&self) -> &str {
        match self {
            Change::Put(entry) => &entry.key,
            Change::Deleted { key, .. } => key,
        }
    }

    /// Its place in history.
    pub fn revision(&self) -> Revision {
        match self {
            Change::Put(entry) => entry.revision,
            Change::Deleted { revision, .. } => *revision,
        }
    }
}

/// Keys with revisions. What was put is durable once the call returns, as far as the store is durable at all.
pub trait Store: Send + Sync + 'static {
    /// What a key holds; absent when it does not exist.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send;

    /// Everything whose key begins with `prefix`.
    fn list(&self, prefix: &str) -> impl Future<Output = Result<Listing, StoreError>> + Send;

    /// Writes a key if nobody else did meanwhile, else [`StoreError::Conflict`]. Returns its new revision.
    fn put_if(&self, put: Put) -> impl Future<Output = Result<Revision, StoreError>> + Send;

    /// Deletes a key if it is at `expected`, else [`StoreError::Conflict`].
    fn delete_if(&self, key: &str, expected: Revision) -> impl Future<Output = Result<Revision, StoreError>> + Send;

    /// The same store for a writer that may be deposed: each of its writes is refused with [`StoreError::Fenced`], in the
    /// transaction itself, unless the fence holds. What it reads is not fenced.
    fn fenced(&self, fence: Fence) -> Self
    where
        Self: Sized;

    /// Every change below `prefix` after a revision, in order; each once. Of changes that the store gave up while it could not
    /// be reached, the last of each key is told. The receiver ends when the store does or when its reader fell too far
    /// behind: then list again.
    fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> impl Future<Output = Result<mpsc::Receiver<Change>, StoreError>> + Send;

    /// A lease that lapses when it is not kept alive for `ttl`; its keys vanish with it.
    fn grant(&self, ttl: Duration) -> impl Future<Output = Result<LeaseId, StoreError>> + Send;

    /// Begins the lease's time anew.
    fn keep_alive(&self, lease: LeaseId) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Ends the lease now.
    fn revoke(&self, lease: LeaseId) -> impl Future<Output = Result<(), StoreError>> + Send;
}
