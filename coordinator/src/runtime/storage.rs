//! What the coordinator looks up on shared storage, where it can see it: manifests, and nothing else.

use super::{Outside, RuntimeError};
use crate::job::JobState;
use common::{
    ids::Step,
    manifest::{Manifest, paths},
};
use std::{io, path::Path, time::Duration};
use tokio::time::timeout;

/// How long storage may take to answer; what it does not say in time counts as unseen.
const LOOK: Duration = Duration::from_secs(5);

/// The steps of ordered and unconfirmed commits whose manifest is there as ordered.
pub(super) async fn unconfirmed(outside: &dyn Outside, state: &JobState) -> Vec<Step> {
    let mut found = Vec::new();
    for (step, intent) in &state.intents {
        let folder = paths::checkpoint_folder(state.recipe.checkpoint_root(), &intent.manifest.stage, *step);
        let read = timeout(LOOK, outside.read(&folder.join(paths::MANIFEST_FILE))).await;
        if let Ok(Ok(text)) = read
            && Manifest::parse(&text, *step).is_ok_and(|manifest| manifest == intent.manifest)
        {
            found.push(*step);
        }
    }
    found
}

/// Whether the checkpoint that a user names is there. A coordinator that does not see the stage's folder leaves the check
/// to the trainers.
pub(super) async fn check(outside: &dyn Outside, state: &JobState, step: Step) -> Result<(), RuntimeError> {
    let Some(stage) = state.recipe.stages.get(state.stage()) else { return Ok(()) };
    let folder = paths::stage_folder(state.recipe.checkpoint_root(), stage.kind());
    let Ok(Ok(steps)) = timeout(LOOK, committed(outside, &folder)).await else { return Ok(()) };
    if steps.contains(&step) {
        return Ok(());
    }
    let manifest = folder.join(paths::step_folder(step)).join(paths::MANIFEST_FILE);
    Err(RuntimeError::NoCheckpoint { job: state.job.clone(), step, manifest, steps })
}

async fn committed(outside: &dyn Outside, stage: &Path) -> io::Result<Vec<Step>> {
    let mut steps = Vec::new();
    for name in outside.list(stage).await? {
        let Some(step) = paths::parse_step_folder(&name) else { continue };
        if outside.exists(&stage.join(name).join(paths::MANIFEST_FILE)).await? {
            steps.push(step);
        }
    }
    steps.sort();
    Ok(steps)
}
