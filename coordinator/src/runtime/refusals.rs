//! Who asked to be taken in and was not: kept for a user to find, also after another coordinator has taken over. Bounded, as
//! whoever reaches the API can ask under any name.

use super::RuntimeError;
use crate::{
    job::RecordError,
    store::{Put, Revision, Store},
};
use common::{
    ids::WorkerId,
    refusal::{Refusal, Refused},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::Instant;

/// Where they are stored, all in one.
const KEY: &str = "/llm2clip/v1/refusals";
/// The version that is written.
const VERSION: u32 = 1;
/// How many are kept: those that asked last.
const MOST: usize = 64;
/// How often they are stored at most: one that asks again and again costs no write a time.
const LAZY: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    refused: Vec<Refused>,
}

/// All that are kept, newest last.
#[derive(Default)]
pub(super) struct Refusals {
    /// Whether what is stored was read: not before it is of use, as a leader has better to do when it begins.
    read: bool,
    kept: Vec<Refused>,
    revision: Option<Revision>,
    stored: Option<Instant>,
    dirty: bool,
}

impl Refusals {
    /// All of them, read from the store the first time.
    pub(super) async fn of<S: Store>(&mut self, store: &S) -> Result<&mut Self, RuntimeError> {
        if std::mem::replace(&mut self.read, true) {
            return Ok(self);
        }
        let Some(entry) = store.get(KEY).await? else { return Ok(self) };
        let failed = |source| RuntimeError::Record { key: KEY.to_owned(), source };
        let record: Record = serde_json::from_slice(&entry.value).map_err(|error| failed(error.into()))?;
        if record.version != VERSION {
            return Err(failed(RecordError::Version(record.version)));
        }
        (self.kept, self.revision) = (record.refused, Some(entry.revision));
        Ok(self)
    }

    /// One more; what to tell the worker.
    pub(super) fn note(&mut self, worker: &WorkerId, host: &str, refusal: Refusal, now: Timestamp) -> String {
        let message = refusal.explain(worker, host);
        let known = self.kept.iter().position(|r| r.worker == *worker && r.host == host && r.refusal == refusal);
        let refused = match known {
            Some(at) => {
                let known = self.kept.remove(at);
                Refused { count: known.count + 1, seen: now, ..known }
            }
            None => {
                tracing::warn!(%worker, host, why = message, "refused a worker");
                let (worker, host, message) = (worker.clone(), host.to_owned(), message.clone());
                Refused { worker, host, refusal, message, count: 1, since: now, seen: now }
            }
        };
        self.kept.push(refused);
        let surplus = self.kept.len().saturating_sub(MOST);
        self.kept.drain(..surplus);
        self.dirty = true;
        message
    }

    /// What to show, newest first.
    pub(super) fn shown(&self) -> Vec<Refused> {
        self.kept.iter().rev().cloned().collect()
    }

    /// Stores what is new, now and then; `all` of it when there is no later.
    pub(super) async fn flush<S: Store>(&mut self, store: &S, all: bool) -> Result<(), RuntimeError> {
        let soon = self.stored.is_some_and(|stored| stored.elapsed() < LAZY);
        if !self.dirty || (soon && !all) {
            return Ok(());
        }
        let record = Record { version: VERSION, refused: self.kept.clone() };
        let value = serde_json::to_vec(&record).expect("a record has string keys only");
        let put = Put { key: KEY.to_owned(), value, expected: self.revision, lease: None };
        self.revision = Some(store.put_if(put).await?);
        (self.stored, self.dirty) = (Some(Instant::now()), false);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    fn duplicate(of: &str) -> Refusal {
        Refusal::Duplicate { holder: of.to_owned() }
    }

    #[tokio::test]
    async fn they_are_counted_bounded_and_outlive_the_coordinator() {
        let (store, w) = (MemoryStore::default(), |number: usize| format!("w{number}").parse::<WorkerId>().unwrap());
        let mut refusals = Refusals::default();
        for number in 0..MOST {
            refusals.note(&w(number), "box", duplicate("a"), Timestamp(1));
        }
        refusals.note(&w(0), "box", duplicate("a"), Timestamp(2));
        refusals.note(&w(99), "box", duplicate("b"), Timestamp(3));
        refusals.flush(&store, false).await.unwrap();
        let again = Refusals::default().of(&store).await.unwrap().shown();
        assert_eq!(again, refusals.shown());
        assert_eq!(again.len(), MOST);
        let first: Vec<(&str, u64)> = again.iter().map(|r| (r.worker.as_str(), r.count)).take(3).collect();
        assert_eq!(first, [("w99", 1), ("w0", 2), ("w63", 1)]);
        assert_eq!((again[1].since, again[1].seen), (Timestamp(1), Timestamp(2)));
        assert!(!again.iter().any(|refused| refused.worker == w(1)), "the one that asked longest ago");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_asks_again_and_again_costs_no_write_a_time() {
        let (store, worker) = (MemoryStore::default(), "w".parse().unwrap());
        let mut refusals = Refusals::default();
        let mut revisions = Vec::new();
        for second in 0..11 {
            refusals.note(&worker, "box", duplicate("a"), Timestamp(second));
            refusals.flush(&store, false).await.unwrap();
            revisions.extend(refusals.revision);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        revisions.dedup();
        assert_eq!(revisions.len(), 3, "at 0, 5 and 10 s");
        refusals.flush(&store, true).await.unwrap();
        assert_eq!(Refusals::default().of(&store).await.unwrap().shown()[0].count, 11);
    }
}
