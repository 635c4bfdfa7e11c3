//! What a rank holds in its memory when a peer is lost: the state of a training after the last step that was carried out. The next
//! membership goes on from the newest that any of its ranks holds, so that no step is lost while one rank lives.

use super::{error::TrainerError, parameters::FlatParameters};
use crate::collective::{Collective, CollectiveError, Solo};
use common::ids::{Rank, Step};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};
use tch::{Device, Tensor};

/// The state of a training that was broken off.
#[derive(Debug)]
pub struct Held {
    /// The stage, from 0.
    stage: usize,
    /// How many steps were carried out.
    pub step: Step,
    tensors: HashMap<String, Tensor>,
}

impl Held {
    /// Of parameters whose moments are whole on every rank. Nothing is copied: the tensors are kept.
    ///
    /// # Errors
    /// Never: alone there is nobody to fail.
    pub fn of(stage: usize, step: Step, parameters: &FlatParameters) -> Result<Self, CollectiveError> {
        Ok(Self { stage, step, tensors: parameters.named(&Solo)?.into_iter().collect() })
    }

    /// Of parameters whose moments are shared out over the ranks, all of which call it: they are gathered in host memory.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn gathered(
        stage: usize,
        step: Step,
        parameters: &FlatParameters,
        collective: &dyn Collective,
    ) -> Result<Self, CollectiveError> {
        let named = parameters.named(collective)?.into_iter();
        let tensors = named.map(|(name, tensor)| (name, tensor.to_device(Device::Cpu))).collect();
        Ok(Self { stage, step, tensors })
    }

    /// A tensor by its name in checkpoints.
    ///
    /// # Errors
    /// When there is none: the recipe of a job does not change, so it is a mistake of this program.
    pub fn tensor(&self, name: &str) -> Result<Tensor, TrainerError> {
        let found = self.tensors.get(name).map(Tensor::shallow_clone);
        found.ok_or_else(|| TrainerError::Plan(format!("the state in memory has no tensor `{name}`")))
    }
}

/// Where it is between two plans.
#[derive(Debug, Default)]
pub struct HeldSlot(Mutex<Option<Held>>);

impl HeldSlot {
    /// Keeps a state for the next plan.
    pub fn put(&self, held: Held) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
    }

    /// The state of this stage; of another one it is forgotten.
    pub fn take(&self, stage: usize) -> Option<Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().filter(|held| held.stage == stage)
    }

    /// Forgets a state that is not of this stage.
    pub fn keep_only(&self, stage: usize) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = slot.take().filter(|held| held.stage == stage);
    }

    /// The step of the state that is held.
    pub fn step(&self) -> Option<Step> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|held| held.step)
    }

    /// Whether there is one.
    pub fn is_full(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// Which rank holds the newest state, and of which step; the lowest of several. Absent when nobody holds one that is as new as
/// `at_least`. All ranks call it.
///
/// # Errors
/// When a peer fails.
pub fn newest(
    collective: &dyn Collective,
    mine: Option<&Held>,
    at_least: Step,
) -> Result<Option<(Rank, Step)>, CollectiveError> {
    let mine = mine.map_or(-1, |held| held.step.0 as i64);
    let rows = vec![1; collective.world().0 as usize];
    let all: Vec<i64> = (&collective.all_gather_rows(&Tensor::from_slice(&[mine]), &rows)?)
        .try_into()
        .expect("one number a rank was gathered");
    let newest = all.iter().copied().max().unwrap_or(-1);
    let Ok(step) = u64::try_from(newest) else { return Ok(None) };
    if step < at_least.0 {
        return Ok(None);
    }
    let rank = collective.world().ranks().zip(&all).find_map(|(rank, held)| (*held == newest).then_some(rank));
    Ok(rank.map(|rank| (rank, Step(step))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(stage: usize, step: u64) -> Held {
        Held { stage, step: Step(step), tensors: HashMap::from([("param.w".to_owned(), Tensor::from(2.0f32))]) }
    }

    #[test]
    fn a_state_is_taken_once_and_by_its_own_stage() {
        let slot = HeldSlot::default();
        assert!(slot.take(1).is_none() && !slot.is_full());
        slot.put(held(1, 7));
        assert!(slot.is_full());
        assert_eq!(slot.take(1).map(|held| held.step), Some(Step(7)));
        assert!(slot.take(1).is_none());
        slot.put(held(1, 7));
        assert!(slot.take(2).is_none() && !slot.is_full(), "of another stage it is forgotten");
    }

    #[test]
    fn the_newest_state_counts_and_one_older_than_the_checkpoint_does_not() {
        assert_eq!(newest(&Solo, Some(&held(0, 7)), Step(4)).unwrap(), Some((Rank(0), Step(7))));
        assert_eq!(newest(&Solo, Some(&held(0, 3)), Step(4)).unwrap(), None);
        assert_eq!(newest(&Solo, None, Step(0)).unwrap(), None);
        assert_eq!(newest(&Solo, Some(&held(0, 0)), Step(0)).unwrap(), Some((Rank(0), Step(0))));
        assert!(held(0, 1).tensor("param.v").unwrap_err().to_string().contains("param.v"));
    }
}
