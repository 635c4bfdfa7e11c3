//! The jobs in memory, and their records in the store.

use super::RuntimeError;
use crate::{
    job::{self, JobState},
    store::{Put, Revision, Store},
};
use common::{
    ids::JobId,
    recipe::Recipe,
    status::{JobStatus, Phase},
    time::Timestamp,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// Where jobs are stored, by id.
const PREFIX: &str = "/llm2clip/v1/jobs/";
/// How long progress may be in memory only.
const LAZY: Duration = Duration::from_secs(5);

/// All jobs.
#[derive(Default)]
pub(super) struct Jobs {
    known: BTreeMap<JobId, Entry>,
}

struct Entry {
    state: JobState,
    revision: Option<Revision>,
    stored: Instant,
    dirty: bool,
    status: watch::Sender<Arc<JobStatus>>,
}

impl Jobs {
    /// Reads all records.
    pub(super) async fn load<S: Store>(store: &S, now: Timestamp) -> Result<Self, RuntimeError> {
        let mut jobs = Self::default();
        for entry in store.list(PREFIX).await?.entries {
            let key = entry.key.clone();
            let state = job::decode(&entry.value).map_err(|source| RuntimeError::Record { key, source })?;
            jobs.insert(state, Some(entry.revision), now);
        }
        Ok(jobs)
    }

    /// The newest time that was written down.
    pub(super) fn newest_change(&self) -> Timestamp {
        self.known.values().map(|entry| entry.state.updated).max().unwrap_or_default()
    }

    /// Has every wait begin at `now`: see [`job::loaded`].
    pub(super) fn begin_waits_anew(&mut self, now: Timestamp) {
        for entry in self.known.values_mut() {
            entry.state = job::loaded(entry.state.clone(), now);
        }
    }

    fn insert(&mut self, state: JobState, revision: Option<Revision>, now: Timestamp) {
        let (status, _) = watch::channel(Arc::new(job::status(&state, now)));
        let entry = Entry { revision, stored: Instant::now(), dirty: false, status, state };
        self.known.insert(entry.state.job.clone(), entry);
    }

    /// Stores a new job.
    pub(super) async fn create<S: Store>(
        &mut self,
        store: &S,
        state: JobState,
        now: Timestamp,
    ) -> Result<(), RuntimeError> {
        let revision = put(store, &state, None).await?;
        self.insert(state, Some(revision), now);
        Ok(())
    }

    /// Stores what became of a job, then shows it. Lazily: not at once, but with the next change or soon.
    pub(super) async fn update<S: Store>(
        &mut self,
        store: &S,
        state: JobState,
        lazily: bool,
        now: Timestamp,
    ) -> Result<(), RuntimeError> {
        let Some(entry) = self.known.get_mut(&state.job) else { return Err(RuntimeError::UnknownJob(state.job)) };
        if lazily {
            entry.dirty = true;
        } else {
            entry.revision = Some(put(store, &state, entry.revision).await?);
            (entry.stored, entry.dirty) = (Instant::now(), false);
        }
        if phase_name(&entry.state, now) != phase_name(&state, now) {
            tracing::info!(job = %state.job, generation = state.generation.0, phase = phase_name(&state, now), "job changed");
        }
        entry.state = state;
        entry.status.send_replace(Arc::new(job::status(&entry.state, now)));
        Ok(())
    }

    /// Stores what was put off; all of it if `all`.
    pub(super) async fn flush<S: Store>(&mut self, store: &S, all: bool) -> Result<(), RuntimeError> {
        for entry in self.known.values_mut() {
            if entry.dirty && (all || entry.stored.elapsed() >= LAZY) {
                entry.revision = Some(put(store, &entry.state, entry.revision).await?);
                (entry.stored, entry.dirty) = (Instant::now(), false);
            }
        }
        Ok(())
    }

    /// A job's state.
    pub(super) fn get(&self, job: &JobId) -> Result<&JobState, RuntimeError> {
        self.known.get(job).map(|entry| &entry.state).ok_or_else(|| RuntimeError::UnknownJob(job.clone()))
    }

    /// A job's status, and all that becomes of it.
    pub(super) fn watch(&self, job: &JobId) -> Result<watch::Receiver<Arc<JobStatus>>, RuntimeError> {
        let entry = self.known.get(job).ok_or_else(|| RuntimeError::UnknownJob(job.clone()))?;
        Ok(entry.status.subscribe())
    }

    /// All states, oldest job first.
    pub(super) fn states(&self) -> Vec<&JobState> {
        let mut states: Vec<&JobState> = self.known.values().map(|entry| &entry.state).collect();
        states.sort_by(|a, b| (a.created, &a.job).cmp(&(b.created, &b.job)));
        states
    }

    /// No other job that is not over writes where a job of this recipe does.
    pub(super) fn leave_alone(&self, job: &JobId, recipe: &Recipe) -> Result<(), RuntimeError> {
        for other in self.states().into_iter().filter(|other| !other.is_over() && other.job != *job) {
            let place = if other.recipe.output == recipe.output {
                Some(recipe.output.as_path())
            } else {
                let both = recipe.trains() && other.recipe.trains();
                (both && recipe.checkpoint_root() == other.recipe.checkpoint_root()).then(|| recipe.checkpoint_root())
            };
            if let Some(place) = place {
                return Err(RuntimeError::OutputInUse { job: other.job.clone(), place: place.to_owned() });
            }
        }
        Ok(())
    }

    /// All statuses, newest job first.
    pub(super) fn statuses(&self) -> Vec<Arc<JobStatus>> {
        let newest_first = self.states().into_iter().rev().filter_map(|state| self.known.get(&state.job));
        newest_first.map(|entry| entry.status.borrow().clone()).collect()
    }
}

async fn put<S: Store>(store: &S, state: &JobState, expected: Option<Revision>) -> Result<Revision, RuntimeError> {
    let key = format!("{PREFIX}{}", state.job);
    Ok(store.put_if(Put { key, value: job::encode(state), expected, lease: None }).await?)
}

fn phase_name(state: &JobState, now: Timestamp) -> &'static str {
    match job::status(state, now).phase {
        Phase::Waiting { .. } => "waiting",
        Phase::Running => "running",
        Phase::Stopping => "stopping",
        Phase::Stopped => "stopped",
        Phase::Succeeded => "succeeded",
        Phase::Failed { .. } => "failed",
    }
}
