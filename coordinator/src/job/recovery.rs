//! A lost process whose peers live: it is started again where it was, and the others go on from what they hold in memory.

use super::{Life, transition::Step};
use common::{ids::Rank, status::FailureCause};

impl Step {
    /// Whether the loss of a process with this cause is one that the others survive: the stage trains, so that they hold its
    /// state; the process did not say itself what is wrong, which another one would find as well; its machine is there; and
    /// the budgets allow it.
    pub(super) fn recovers(&self, cause: Option<&FailureCause>) -> bool {
        let Some(membership) = self.state.membership.as_ref() else { return false };
        let trains = self.state.recipe.stages.get(membership.stage).is_some_and(|stage| stage.training().is_some());
        let stage = self.state.recipe.stages.get(membership.stage);
        let shards = stage.and_then(|stage| stage.training()).is_some_and(|training| training.optimizer.sharded);
        // Before the first plans nobody holds anything.
        let holds = matches!(self.state.life, Life::Running) || membership.held.is_some();
        let died = match cause {
            Some(FailureCause::Signal { .. } | FailureCause::ExitCode { .. } | FailureCause::Hung(_)) => true,
            // Another one would run out as well, unless it was a matter of what else there was: tried once.
            Some(FailureCause::OutOfMemory(_)) => membership.advanced(),
            // Most of the others agree, and have all there is.
            Some(FailureCause::Diverged(diverged)) => !diverged.ranks.is_empty() && !shards,
            None | Some(_) => false,
        };
        let (counters, faults) = (self.state.counters, self.state.recipe.faults);
        let allowed = counters.failures < faults.max_failures
            && (membership.advanced() || counters.no_progress < faults.max_no_progress);
        trains && holds && died && allowed && membership.left() > 0
    }

    /// Begins the next generation in the place of one that lost this rank.
    pub(super) fn replace(&mut self, lost: Rank) {
        let Some(membership) = self.state.membership.as_ref() else { return };
        let (advanced, held) = (membership.advanced(), membership.newest_step());
        let counters = &mut self.state.counters;
        counters.failures += 1;
        counters.no_progress = if advanced { 0 } else { counters.no_progress + 1 };
        let left = self.state.recipe.faults.max_failures.saturating_sub(counters.failures);
        self.tell(
            "recovery",
            format!(
                "rank {lost} is started again; the others keep step {held} in memory; {left} more restarts are allowed"
            ),
        );
        self.begin_again(held);
    }
}
