//! Whether all ranks still have the same: what should be equal in every bit is held against each other now and then.

use super::Training;
use crate::trainer::{
    digest,
    error::{TrainerError, Unlike},
};
use common::{cause::Diverged, ids::Step};
use std::time::{Duration, Instant};
use tch::Tensor;

impl Training<'_, '_> {
    /// Whether the ranks compare what they have after so many steps.
    pub(super) fn compares_after(&self, step: u64) -> bool {
        let every = self.context.plan.recipe.faults.detect.digest_every_steps;
        every > 0 && step.is_multiple_of(every)
    }

    /// Holds what this rank has against what the others have; returns how long that took.
    pub(super) fn compare(&self) -> Result<Duration, TrainerError> {
        let (context, collective) = (self.context, self.context.collective);
        if context.plan.recipe.faults.detect.digest_every_steps == 0 || context.world().0 == 1 {
            return Ok(Duration::ZERO);
        }
        let started = Instant::now();
        let mine = Tensor::from_slice(&self.parameters.digest()?).view([1, 2]);
        let all = collective.all_gather_rows(&mine, &vec![1; context.world().0 as usize])?;
        let all: Vec<i64> = all.view([-1]).try_into()?;
        let digests: Vec<String> = all.as_chunks().0.iter().map(|digest| digest::hex(*digest)).collect();
        let Some(diverged) = Diverged::judge(Step(self.step), &digests) else { return Ok(started.elapsed()) };
        // What a rank of the majority holds is what the training goes on from; of sharded moments nobody has all.
        let sound = !diverged.ranks.is_empty() && !diverged.ranks.contains(&context.rank());
        let unlike = Box::new(Unlike(diverged));
        Err(if sound && !self.parameters.is_sharded() {
            TrainerError::PeerReplica(unlike)
        } else {
            TrainerError::Replica(unlike)
        })
    }
}
