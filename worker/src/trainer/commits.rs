//! The trainer's part in committing checkpoints: it creates `manifest.json` when the coordinator says so, and knows what
//! is committed.

use super::{context::Context, error::TrainerError, link::Link};
use crate::{checkpoint, supervisor::ipc::Report};
use common::{
    ids::Step,
    manifest::{Manifest, paths, retention},
    plan::TrainPlan,
};
use std::{
    path::Path,
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long all ranks wait for the last checkpoint's commit.
const COMMIT_DEADLINE: Duration = Duration::from_secs(60);

/// How often a wait looks whether it is in vain.
const LOOK: Duration = Duration::from_millis(50);

/// What is known to be committed by this process; written by the commit thread, read by the loop.
#[derive(Debug, Default)]
pub struct Committed {
    newest: Mutex<Option<Step>>,
    changed: Condvar,
}

impl Committed {
    /// Forgets everything: a new plan begins.
    pub fn reset(&self) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn set(&self, step: Step) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        *newest = (*newest).max(Some(step));
        self.changed.notify_all();
    }

    fn get(&self) -> Option<Step> {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `step` is committed within `deadline`, or before it makes no sense to wait any longer.
    fn wait(&self, step: Step, deadline: Duration, in_vain: impl Fn() -> bool) -> bool {
        let end = Instant::now() + deadline;
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        while newest.is_none_or(|newest| newest < step) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || in_vain() {
                return false;
            }
            newest = self.changed.wait_timeout(newest, left.min(LOOK)).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// The newest step whose checkpoint this process committed.
pub fn newest(context: &Context<'_>) -> Option<Step> {
    context.committed.get()
}

/// Waits until the checkpoint of `step` is committed. All ranks call it: the one that is told to commit waits for the
/// order, the others for that one.
pub fn wait(context: &Context<'_>, step: Step) -> Result<(), TrainerError> {
    let resumed_here = context.plan.resume.as_ref().is_some_and(|point| point.step == step);
    let superseded = || context.link.is_superseded();
    if context.speaks() && !resumed_here && !context.committed.wait(step, COMMIT_DEADLINE, superseded) {
        // Of a membership that is over nothing is committed any more.
        if superseded() {
            return Err(TrainerError::Superseded);
        }
        return Err(TrainerError::NotCommitted { step: step.0, seconds: COMMIT_DEADLINE.as_secs() });
    }
    Ok(context.collective.barrier()?)
}

/// Obeys the orders to commit, on a thread of its own, until the link ends. `plan` is the plan of the newest generation.
pub fn obey(link: &Link, plan: &Mutex<Option<TrainPlan>>, committed: &Committed) {
    for (step, manifest) in link.manifest_orders() {
        let Some(plan) = plan.lock().unwrap_or_else(PoisonError::into_inner).clone() else { continue };
        if manifest.generation != plan.generation {
            tracing::warn!(generation = %manifest.generation, "refused to commit a checkpoint of another generation");
            continue;
        }
        let started = Instant::now();
        match commit(&plan, step, &manifest) {
            Ok(()) => {
                tracing::info!(step = step.0, seconds = started.elapsed().as_secs_f64(), "committed a checkpoint");
                link.report(Report::CheckpointCommitted { generation: plan.generation, step });
                committed.set(step);
            }
            Err(error) => tracing::error!(step = step.0, %error, "could not commit a checkpoint"),
        }
    }
}

fn commit(plan: &TrainPlan, step: Step, manifest: &Manifest) -> Result<(), TrainerError> {
    checkpoint::create_manifest(&paths::checkpoint_folder(&plan.output, &manifest.stage, step), manifest)?;
    if let Some(training) = plan.recipe.training(&manifest.stage) {
        retire(&paths::stage_folder(&plan.output, &manifest.stage), training.checkpoint.keep);
    }
    Ok(())
}

/// Deletes old checkpoints; one that cannot be deleted is told of and left.
fn retire(stage: &Path, keep: usize) {
    let steps = checkpoint::committed_steps(stage);
    for step in retention::to_delete(&steps, keep) {
        let folder = stage.join(paths::step_folder(step));
        if let Err(error) = std::fs::remove_dir_all(&folder) {
            tracing::warn!(folder = %folder.display(), %error, "could not delete an old checkpoint");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_the_commit_and_an_older_commit_is_not_enough() {
        let committed = Committed::default();
        committed.set(Step(50));
        let never = || false;
        assert!(committed.wait(Step(50), Duration::ZERO, never));
        assert!(!committed.wait(Step(100), Duration::ZERO, never));
        assert!(!committed.wait(Step(100), Duration::from_secs(60), || true));
        std::thread::scope(|scope| {
            scope.spawn(|| committed.set(Step(100)));
            assert!(committed.wait(Step(100), Duration::from_secs(10), never));
        });
        committed.reset();
        assert_eq!(committed.get(), None);
    }
}
