//! What a failed generation means for its job: try again, wait, or give up.

use super::{Life, ending::sentence, transition::Step};
use common::status::{Failure, FailureCause};
use std::time::Duration;

/// The wait before the first restart; it doubles with each that brings nothing.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait before a restart.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(30);

impl Step {
    /// All processes of the failed generation are gone.
    pub(super) fn judge(&mut self) {
        let generation = self.state.generation;
        let cause = self.state.failures.iter().find(|failure| failure.generation == generation).cloned();
        let message = cause.as_ref().map_or_else(|| "its trainers ended".to_owned(), sentence);
        let advanced = self.state.membership.as_ref().is_some_and(super::Membership::advanced);
        let committed = self.state.membership.as_ref().is_some_and(|membership| membership.committed);
        let faults = self.state.recipe.faults;
        let counters = &mut self.state.counters;
        counters.failures += 1;
        counters.no_progress = if committed { 0 } else { counters.no_progress + 1 };
        let counters = *counters;
        if !advanced && is_users(cause.as_ref()) {
            return self.give_up(1, message);
        }
        if counters.failures > faults.max_failures {
            let exit_code = if faults.max_failures == 0 { 1 } else { 6 };
            let spent = format!("{message}; all {} restarts are spent", faults.max_failures);
            return self.give_up(exit_code, if faults.max_failures == 0 { message } else { spent });
        }
        if counters.no_progress > faults.max_no_progress {
            let tries = counters.no_progress;
            return self.give_up(93, format!("{message}; {tries} tries in a row brought no newer checkpoint"));
        }
        let doublings = counters.no_progress.saturating_sub(1).min(10);
        let wait = FIRST_WAIT.saturating_mul(1 << doublings).min(LONGEST_WAIT);
        self.state.life = Life::BackOff { until: self.now.plus(wait) };
        let left = faults.max_failures - counters.failures;
        self.tell("restart", format!("restarts in {} s; {left} more restarts are allowed", wait.as_secs()));
    }

    pub(super) fn give_up(&mut self, exit_code: u8, message: String) {
        self.tell("failed", message.clone());
        self.state.life = Life::Failed { exit_code, message };
    }
}

/// Whether the trainer itself said what is wrong: with its input, as nothing was done yet.
fn is_users(cause: Option<&Failure>) -> bool {
    cause.is_some_and(|failure| matches!(failure.cause, FailureCause::Error { .. }))
}
