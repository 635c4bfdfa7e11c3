//! Which workers get no new trainers although they are there: those that a user drains, those in quarantine after faults, those
//! that said that they leave. What a user decides and what happened outlives the coordinator.

use super::RuntimeError;
use crate::{
    job::{Event, RecordError},
    store::{Put, Revision, Store},
};
use common::{
    ids::WorkerId,
    status::{Barred, FailureCause},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// Where it is stored, by worker.
const PREFIX: &str = "/llm2clip/v1/workers/";
/// The version that is written.
const VERSION: u32 = 1;

/// When a machine is not trusted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quarantine {
    /// After so many faults …
    pub after: u32,
    /// … within this time;
    pub window: Duration,
    /// until so long after the last of them, or until a user lifts it.
    pub lasts: Duration,
}

impl Default for Quarantine {
    fn default() -> Self {
        Self { after: 3, window: Duration::from_secs(600), lasts: Duration::from_secs(1800) }
    }
}

/// What is known of a worker, as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    drained: bool,
    /// When its newest faults were, oldest first.
    faults: Vec<Timestamp>,
    quarantined_until: Option<Timestamp>,
}

impl Record {
    /// One more fault; whether the worker is in quarantine from now on.
    fn fault(&mut self, rule: Quarantine, now: Timestamp) -> bool {
        self.faults.retain(|at| now.since(*at) <= rule.window);
        self.faults.push(now);
        let before = self.quarantined_until.is_some_and(|until| until > now);
        if self.faults.len() < rule.after as usize {
            return false;
        }
        self.quarantined_until = Some(now.plus(rule.lasts));
        !before
    }

    fn barred(&self, now: Timestamp) -> Option<Barred> {
        match self.quarantined_until.filter(|until| *until > now) {
            _ if self.drained => Some(Barred::Drained),
            Some(until) => {
                Some(Barred::Quarantined { until, faults: self.faults.len().try_into().unwrap_or(u32::MAX) })
            }
            None => None,
        }
    }
}

/// What is known of all.
#[derive(Default)]
pub(super) struct Fitness {
    known: BTreeMap<WorkerId, (Record, Option<Revision>)>,
}

impl Fitness {
    /// Reads all records.
    pub(super) async fn load<S: Store>(store: &S) -> Result<Self, RuntimeError> {
        let mut known = BTreeMap::new();
        for entry in store.list(PREFIX).await?.entries {
            let failed = |source| RuntimeError::Record { key: entry.key.clone(), source };
            let record: Record = serde_json::from_slice(&entry.value).map_err(|error| failed(error.into()))?;
            if record.version != VERSION {
                return Err(failed(RecordError::Version(record.version)));
            }
            if let Some(worker) = entry.key.strip_prefix(PREFIX).and_then(|name| name.parse().ok()) {
                known.insert(worker, (record, Some(entry.revision)));
            }
        }
        Ok(Self { known })
    }

    /// Whether a worker gets no new trainers, and why.
    pub(super) fn barred(&self, worker: &WorkerId, now: Timestamp) -> Option<Barred> {
        self.known.get(worker)?.0.barred(now)
    }

    /// A user wants a worker to get no new trainers.
    pub(super) async fn drain<S: Store>(&mut self, store: &S, worker: &WorkerId) -> Result<(), RuntimeError> {
        self.change(store, worker, |record| record.drained = true).await
    }

    /// A user wants a worker to be one like others again; its faults are forgotten.
    pub(super) async fn undrain<S: Store>(&mut self, store: &S, worker: &WorkerId) -> Result<(), RuntimeError> {
        self.change(store, worker, |record| *record = Record::default()).await
    }

    /// A trainer of a worker was lost by no fault of its own; whether the worker is in quarantine from now on.
    pub(super) async fn fault<S: Store>(
        &mut self,
        store: &S,
        worker: &WorkerId,
        rule: Quarantine,
        now: Timestamp,
    ) -> Result<bool, RuntimeError> {
        let mut begins = false;
        self.change(store, worker, |record| begins = record.fault(rule, now)).await?;
        Ok(begins)
    }

    async fn change<S: Store>(
        &mut self,
        store: &S,
        worker: &WorkerId,
        change: impl FnOnce(&mut Record),
    ) -> Result<(), RuntimeError> {
        let (before, expected) = self.known.get(worker).cloned().unwrap_or_default();
        let mut record = before.clone();
        change(&mut record);
        record.version = VERSION;
        if record == before {
            return Ok(());
        }
        let value = serde_json::to_vec(&record).expect("a record has string keys only");
        let revision = store.put_if(Put { key: format!("{PREFIX}{worker}"), value, expected, lease: None }).await?;
        self.known.insert(worker.clone(), (record, Some(revision)));
        Ok(())
    }
}

/// Whether it is a loss that the machine may be to blame for.
pub(super) fn is_fault(event: &Event) -> bool {
    use FailureCause::{Diverged, ExitCode, Hung, OutOfMemory, Signal};
    let Event::TrainerEnded { cause: Some(cause), .. } = event else { return false };
    match cause {
        Signal { signal } => *signal != 15,
        Diverged(diverged) => !diverged.ranks.is_empty(),
        ExitCode { .. } | Hung(_) | OutOfMemory(_) => true,
        FailureCause::Error { .. } | FailureCause::Spawn { .. } | FailureCause::WorkerLost => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    const RULE: Quarantine =
        Quarantine { after: 3, window: Duration::from_secs(600), lasts: Duration::from_secs(1800) };

    fn at(seconds: u64) -> Timestamp {
        Timestamp(1_000 * seconds)
    }

    #[test]
    fn so_many_faults_within_the_window_are_a_quarantine_that_ends() {
        let mut record = Record::default();
        let began: Vec<bool> = [0, 500, 700, 1000, 1100].map(|s| record.fault(RULE, at(s))).to_vec();
        assert_eq!(began, [false, false, false, true, false], "the first had passed when the third came");
        assert_eq!(record.barred(at(2000)), Some(Barred::Quarantined { until: at(2900), faults: 4 }));
        assert_eq!(record.barred(at(2900)), None);
        record.drained = true;
        assert_eq!(record.barred(at(2900)), Some(Barred::Drained));
    }

    #[tokio::test]
    async fn what_was_decided_outlives_the_coordinator_and_is_lifted_whole() {
        let (store, worker) = (MemoryStore::default(), "w".parse().unwrap());
        let mut fitness = Fitness::load(&store).await.unwrap();
        fitness.drain(&store, &worker).await.unwrap();
        for second in 0..3 {
            assert_eq!(fitness.fault(&store, &worker, RULE, at(second)).await.unwrap(), second == 2);
        }
        let mut again = Fitness::load(&store).await.unwrap();
        assert_eq!(again.barred(&worker, at(3)), Some(Barred::Drained));
        again.undrain(&store, &worker).await.unwrap();
        assert_eq!(Fitness::load(&store).await.unwrap().barred(&worker, at(3)), None);
    }
}
