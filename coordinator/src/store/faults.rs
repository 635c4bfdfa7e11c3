//! A coordinator that dies at a write on purpose: `LLM2CLIP_STORE_FAULTS="write=kill@3"` in its environment. Without the variable
//! nothing ever happens here.
//!
//! `MOMENT=kill@NUMBER`, several parted by commas: SIGKILL at the write of that number, counted in the process from 1. Moments: `write`,
//! before the store is asked; `written`, when the write is durable and nobody has been told. A write that the store refuses counts, too.

use super::{
    StoreError,
    contract::{Change, Entry, Fence, LeaseId, Listing, Put, Revision, Store},
};
use rustix::process::{Signal, getpid, kill_process};
use std::{
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::mpsc;

/// The environment variable that arms them.
const VARIABLE: &str = "LLM2CLIP_STORE_FAULTS";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Before,
    After,
}

/// The faults that this process was told to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Faults(Vec<(Moment, u64)>);

impl FromStr for Faults {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let all = parts
            .map(|part| one(part).ok_or_else(|| format!("{VARIABLE}: `{part}` is no fault, such as write=kill@3")));
        Ok(Self(all.collect::<Result<_, _>>()?))
    }
}

fn one(text: &str) -> Option<(Moment, u64)> {
    let (moment, what) = text.split_once('=')?;
    let number = what.strip_prefix("kill@")?.parse().ok().filter(|number| *number > 0)?;
    match moment {
        "write" => Some((Moment::Before, number)),
        "written" => Some((Moment::After, number)),
        _ => None,
    }
}

/// A store, and the death of its user at some of the writes. Those that are made from it by [`Store::fenced`] count together.
pub struct Faulty<S> {
    inner: S,
    faults: Faults,
    writes: Arc<AtomicU64>,
}

impl<S: Store> Faulty<S> {
    /// With the faults of the environment.
    ///
    /// # Errors
    /// What of it is none.
    pub fn from_environment(inner: S) -> Result<Self, String> {
        let faults = std::env::var(VARIABLE).unwrap_or_default().parse()?;
        Ok(Self { inner, faults, writes: Arc::default() })
    }

    async fn write(
        &self,
        write: impl Future<Output = Result<Revision, StoreError>> + Send,
    ) -> Result<Revision, StoreError> {
        let number = self.writes.fetch_add(1, Ordering::Relaxed) + 1;
        self.at(Moment::Before, number);
        let written = write.await?;
        self.at(Moment::After, number);
        Ok(written)
    }

    fn at(&self, moment: Moment, number: u64) {
        if self.faults.0.contains(&(moment, number)) {
            // It cannot fail: a process may signal itself.
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }
}

impl<S: Store> Store for Faulty<S> {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.inner.list(prefix).await
    }

    async fn put_if(&self, put: Put) -> Result<Revision, StoreError> {
        self.write(self.inner.put_if(put)).await
    }

    async fn delete_if(&self, key: &str, expected: Revision) -> Result<Revision, StoreError> {
        self.write(self.inner.delete_if(key, expected)).await
    }

    fn fenced(&self, fence: Fence) -> Self {
        Self { inner: self.inner.fenced(fence), faults: self.faults.clone(), writes: self.writes.clone() }
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<mpsc::Receiver<Change>, StoreError> {
        self.inner.watch(prefix, after).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.inner.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.revoke(lease).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{MemoryStore, suite};

    #[tokio::test]
    async fn without_faults_it_keeps_the_contract() {
        let store = Faulty { inner: MemoryStore::default(), faults: Faults::default(), writes: Arc::default() };
        suite::contract(&store).await;
        assert!(store.writes.load(Ordering::Relaxed) > 20, "what is fenced counts with it");
    }

    #[test]
    fn a_fault_has_a_moment_and_a_number_and_what_is_none_is_named() {
        let check = |text: &str, expected: &[(Moment, u64)]| assert_eq!(text.parse::<Faults>().unwrap().0, expected);
        check("", &[]);
        check("write=kill@3, written=kill@1", &[(Moment::Before, 3), (Moment::After, 1)]);
        for wrong in ["write", "write=kill", "write=kill@0", "write=stop@1", "read=kill@1", "written=kill@x"] {
            let error = wrong.parse::<Faults>().unwrap_err();
            assert!(error.contains(wrong) && error.contains(VARIABLE), "{error}");
        }
    }
}
