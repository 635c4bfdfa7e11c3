//! A store that forgets: for tests, and for jobs that nobody wants to find again.

use super::{
    StoreError,
    contract::{Change, Entry, Fence, LeaseId, Listing, Put, Revision, Store},
    engine::{Engine, Journal, Loaded},
};
use std::time::Duration;
use tokio::sync::mpsc;

/// Lives as long as the process; clones share what is in it.
#[derive(Clone)]
pub struct MemoryStore(Engine<Nothing>);

struct Nothing;

impl Journal for Nothing {
    fn write(&mut self, _: &[Change]) -> Result<(), StoreError> {
        Ok(())
    }

    fn lease(&mut self, _: LeaseId, _: Option<Duration>) -> Result<(), StoreError> {
        Ok(())
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self(Engine::new(Nothing, Loaded::default()))
    }
}

impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.0.get(key))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        Ok(self.0.list(prefix))
    }

    async fn put_if(&self, put: Put) -> Result<Revision, StoreError> {
        self.0.put_if(put)
    }

    async fn delete_if(&self, key: &str, expected: Revision) -> Result<Revision, StoreError> {
        self.0.delete_if(key, expected)
    }

    fn fenced(&self, fence: Fence) -> Self {
        Self(self.0.fenced(fence))
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<mpsc::Receiver<Change>, StoreError> {
        self.0.watch(prefix, after)
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.0.grant(ttl)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.0.keep_alive(lease)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.0.revoke(lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::suite;

    #[tokio::test]
    async fn keeps_the_contract() {
        suite::contract(&MemoryStore::default()).await;
    }
}
