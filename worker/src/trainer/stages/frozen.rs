//! What of the towers is trained and what stays as it is.
//!
//! What is locked wants no gradient: it is in no flat buffer, has no moments, and no backward pass goes to it. Checkpoints hold it
//! all the same, without moments, so that `eval`, `export` and a resume need nothing beside them: the folder that the
//! tower was read from may be another by then.

use crate::{
    model::{
        lock,
        lora::{Lora, LoraConfig},
        vision::VisionTower,
    },
    trainer::error::TrainerError,
};
use common::recipe::{self, Lock};
use std::collections::BTreeSet;
use tch::{Tensor, nn};

/// Variables by name.
pub(super) type Named = Vec<(String, Tensor)>;

fn is_adapter(name: &str) -> bool {
    name.starts_with("adapter.")
}

fn is_scalar(name: &str) -> bool {
    name.starts_with("logit_")
}

/// Has no gradient computed of what is locked.
///
/// # Errors
/// When the tower has fewer groups than are to be unlocked.
pub(super) fn lock(store: &nn::VarStore, tower: &dyn VisionTower, how: Lock) -> Result<(), TrainerError> {
    let locked = lock::locked(tower, how.vision_unlocked_groups)?;
    for (name, variable) in store.variables() {
        let frozen = match () {
            () if is_adapter(&name) => how.adapter,
            () if is_scalar(&name) => how.logit_scale,
            () => how.vision && locked(&name),
        };
        if frozen {
            let _ = variable.set_requires_grad(false);
        }
    }
    Ok(())
}

/// Puts new low-rank updates beside the tower's layers, and has no gradient computed of the tower's own weights.
///
/// # Errors
/// When the tower has not the layers.
pub(super) fn adapt(
    store: &nn::VarStore,
    tower: &mut dyn VisionTower,
    how: &recipe::Lora,
    seed: u64,
) -> Result<Lora, TrainerError> {
    for (name, variable) in store.variables() {
        if !is_adapter(&name) && !is_scalar(&name) {
            let _ = variable.set_requires_grad(false);
        }
    }
    let mut target_modules = how.targets.clone();
    if target_modules.is_empty() {
        let end = |(name, _): &(String, _)| name.rsplit('.').next().unwrap_or_default().to_owned();
        target_modules = tower.linears().iter().map(end).collect::<BTreeSet<String>>().into_iter().collect();
    }
    let (rank, alpha, dropout) = (i64::from(how.rank), how.alpha, how.dropout);
    Ok(Lora::new(tower, &LoraConfig { rank, alpha, dropout, target_modules, rank_stabilised: false }, seed)?)
}

/// What is trained, and what is not.
pub(super) fn parted(variables: Named) -> (Named, Named) {
    variables.into_iter().partition(|(_, variable)| variable.requires_grad())
}

/// The trained shares of the vision tower's numbers and of the adapter's, 0 to 1.
pub(super) fn trained_shares(store: &nn::VarStore) -> (f64, f64) {
    let share = |of: fn(&str) -> bool| {
        let (mut trained, mut all) = (0, 0);
        for (_, variable) in store.variables().into_iter().filter(|(name, _)| of(name)) {
            all += variable.numel();
            trained += if variable.requires_grad() { variable.numel() } else { 0 };
        }
        trained as f64 / all.max(1) as f64
    };
    (share(|name| !is_adapter(name) && !is_scalar(name)), share(is_adapter))
}
