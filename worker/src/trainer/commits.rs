//! The trainer's part in committing checkpoints: it creates `manifest.json` when the coordinator says so, and knows what
//! is committed, and what failed.

use super::{agreement, context::Context, error::TrainerError, link::Link};
use crate::{
    checkpoint::{CheckpointError, Shelf, Task, Watch, Writer},
    storage::Storage,
    supervisor::ipc::Report,
};
use common::{
    alarm::{StorageTrouble, Trouble},
    ids::{Generation, Rank, Step},
    manifest::Manifest,
    plan::TrainPlan,
};
use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long all ranks wait for the last checkpoint's commit.
const COMMIT_DEADLINE: Duration = Duration::from_secs(60);

/// How often a wait looks whether it is in vain.
const LOOK: Duration = Duration::from_millis(50);

/// What came of this process's checkpoints in the membership at hand; written by the storage thread, read by the loop.
#[derive(Debug, Default)]
pub struct Committed {
    known: Mutex<Known>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Known {
    /// Of which membership all this is.
    generation: Generation,
    newest: Option<Step>,
    /// The newest that this process could not write or commit.
    failed: Option<(Step, CheckpointError)>,
}

impl Committed {
    /// Forgets everything: a new plan begins.
    pub fn reset(&self, generation: Generation) {
        *self.lock() = Known { generation, ..Known::default() };
    }

    fn set(&self, generation: Generation, step: Step) {
        let mut known = self.lock();
        if known.generation == generation {
            known.newest = known.newest.max(Some(step));
            self.changed.notify_all();
        }
    }

    fn get(&self) -> Option<Step> {
        self.lock().newest
    }

    /// A checkpoint could not be written or committed. What is of an earlier membership counts no more.
    fn fail(&self, generation: Generation, step: Step, error: CheckpointError) {
        let mut known = self.lock();
        if known.generation == generation {
            known.failed = Some((step, error));
            self.changed.notify_all();
        }
    }

    /// Whether the checkpoint of a step failed here.
    pub fn has_failed(&self, step: Step) -> bool {
        self.lock().failed.as_ref().is_some_and(|(failed, _)| *failed == step)
    }

    /// Why the checkpoint of a step failed here. It is forgotten then: it may be tried again.
    pub fn take_failure(&self, step: Step) -> Option<CheckpointError> {
        self.lock().failed.take_if(|(failed, _)| *failed == step).map(|(_, error)| error)
    }

    /// Whether `step` is committed within `deadline`, or before it failed or makes no sense to wait any longer.
    fn wait(&self, step: Step, deadline: Duration, in_vain: impl Fn() -> bool) -> bool {
        let end = Instant::now() + deadline;
        let mut known = self.lock();
        while known.newest.is_none_or(|newest| newest < step) {
            let left = end.saturating_duration_since(Instant::now());
            let failed = known.failed.as_ref().is_some_and(|(failed, _)| *failed == step);
            if left.is_zero() || failed || in_vain() {
                return false;
            }
            known = self.changed.wait_timeout(known, left.min(LOOK)).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The newest step whose checkpoint this process committed.
pub fn newest(context: &Context<'_>) -> Option<Step> {
    context.committed.get()
}

/// Waits until the checkpoint of `step` is committed, or is known not to be: false. All ranks call it: the one that is told to commit
/// waits for the order, the others for that one.
pub fn wait(context: &Context<'_>, step: Step) -> Result<bool, TrainerError> {
    let resumed_here = context.plan.resume.as_ref().is_some_and(|point| point.step == step);
    let superseded = || context.link.is_superseded();
    let mut failed = false;
    if context.speaks() && !resumed_here && !context.committed.wait(step, COMMIT_DEADLINE, superseded) {
        failed = context.committed.has_failed(step);
        // Of a membership that is over nothing is committed any more.
        if !failed && superseded() {
            return Err(TrainerError::Superseded);
        }
        if !failed {
            return Err(TrainerError::NotCommitted { step: step.0, seconds: COMMIT_DEADLINE.as_secs() });
        }
    }
    Ok(!agreement::agree(context.collective, failed)?)
}

/// What a task of the storage thread tells the others of.
#[derive(Clone)]
pub struct Teller {
    /// The way to the coordinator.
    pub link: Link,
    /// The way to the loop.
    pub committed: Arc<Committed>,
    /// Whose task it is.
    pub generation: Generation,
    /// Whose task it is.
    pub rank: Rank,
}

impl Teller {
    /// A checkpoint is not there, for this reason.
    pub fn failed(&self, step: Step, error: CheckpointError) {
        tracing::error!(step = step.0, %error, "a checkpoint is not written");
        let what = Trouble::Failed { message: error.to_string() };
        self.trouble(step, &error, what);
        self.committed.fail(self.generation, step, error);
    }

    /// Tells the coordinator of trouble.
    pub fn trouble(&self, step: Step, about: &CheckpointError, what: Trouble) {
        let trouble = Box::new(StorageTrouble { rank: self.rank, step, file: about.path().to_owned(), what });
        self.link.report(Report::StorageTrouble { generation: self.generation, trouble });
    }
}

/// What it takes to obey orders to commit.
pub struct Obedience {
    /// Whence they come.
    pub link: Link,
    /// The plan of the newest generation.
    pub plan: Arc<Mutex<Option<TrainPlan>>>,
    /// What came of them.
    pub committed: Arc<Committed>,
    /// The thread that carries them out.
    pub writer: Writer,
    /// What object stores are reached through.
    pub storage: Arc<Storage>,
}

impl Obedience {
    /// Takes the orders to the storage thread, on a thread of its own, until the link ends.
    pub fn run(self) {
        for (step, manifest) in self.link.manifest_orders() {
            let Some(plan) = self.plan.lock().unwrap_or_else(PoisonError::into_inner).clone() else { continue };
            if manifest.generation != plan.generation {
                tracing::warn!(generation = %manifest.generation, "refused to commit a checkpoint of another generation");
                continue;
            }
            let (generation, rank) = (plan.generation, plan.rank);
            let tell = Teller { link: self.link.clone(), committed: self.committed.clone(), generation, rank };
            let storage = self.storage.clone();
            let run = Box::new(move |watch: &Watch| {
                match Shelf::open(&storage, plan.recipe.checkpoint_root(), &manifest.stage) {
                    Ok(shelf) => commit(watch, &plan, &shelf, &manifest, &tell),
                    Err(error) => tell.failed(step, error),
                }
            });
            if !self.writer.push(Task { step, of: (rank, generation), run }) {
                tracing::error!(step = step.0, "storage is so far behind that a checkpoint is not committed");
            }
        }
    }
}

/// Creates the manifest, and deletes what is old when that is told. A checkpoint that cannot be committed is removed.
fn commit(watch: &Watch, plan: &TrainPlan, shelf: &Shelf, manifest: &Manifest, tell: &Teller) {
    let (step, started) = (manifest.step, Instant::now());
    match shelf.create_manifest(watch, plan.rank, manifest) {
        Ok(()) => {
            tracing::info!(step = step.0, seconds = started.elapsed().as_secs_f64(), "committed a checkpoint");
            tell.link.report(Report::CheckpointCommitted { generation: plan.generation, step });
            tell.committed.set(plan.generation, step);
            if let Some(training) = plan.recipe.training(&manifest.stage) {
                shelf.retire(watch, step, training.checkpoint.keep);
            }
        }
        // Another's checkpoint is there: it is not ours to remove.
        Err(error @ CheckpointError::Exists { .. }) => tell.failed(step, error),
        Err(error) => {
            if let Err(left) = shelf.remove(watch, step) {
                tracing::warn!(step = step.0, error = %left, "could not remove what was written of a checkpoint");
            }
            tell.failed(step, error);
        }
    }
}

/// Removes the shares of a checkpoint that failed, as far as storage lets it.
pub fn discard(watch: &Watch, shelf: &Shelf, step: Step) {
    if let Err(error) = shelf.discard(watch, step) {
        tracing::warn!(step = step.0, %error, "could not remove what was written of a checkpoint");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_the_commit_and_an_older_commit_is_not_enough() {
        let (committed, generation) = (Committed::default(), Generation(2));
        committed.reset(generation);
        committed.set(generation, Step(50));
        let never = || false;
        assert!(committed.wait(Step(50), Duration::ZERO, never));
        assert!(!committed.wait(Step(100), Duration::ZERO, never));
        assert!(!committed.wait(Step(100), Duration::from_secs(60), || true));
        std::thread::scope(|scope| {
            scope.spawn(|| committed.set(generation, Step(100)));
            assert!(committed.wait(Step(100), Duration::from_secs(10), never));
        });
        committed.reset(Generation(3));
        assert_eq!(committed.get(), None);
        committed.set(generation, Step(150));
        assert_eq!(committed.get(), None, "what an earlier membership committed is not this one's");
    }

    #[test]
    fn a_wait_ends_with_the_failure_which_is_told_once() {
        let (committed, never) = (Committed::default(), || false);
        committed.fail(Generation(0), Step(8), CheckpointError::Elsewhere { step: Step(8) });
        assert!(!committed.wait(Step(8), Duration::from_secs(60), never));
        assert!(committed.has_failed(Step(8)) && !committed.has_failed(Step(4)));
        assert!(committed.take_failure(Step(4)).is_none());
        assert!(committed.take_failure(Step(8)).is_some() && !committed.has_failed(Step(8)));
    }
}
