//! What users ask of a job: stop, resume; and the end of one that nobody looks after.

use super::{After, Counters, Event, JobState, Life, Resume, transition::Step};
use common::{
    ids::{JobId, Step as StepNumber, WorldSize},
    manifest::Weights,
};

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is nothing left to do.
    #[error("job {0} has succeeded: there is nothing to resume; submit it under another name to run it again")]
    Succeeded(JobId),
    /// It goes on by itself.
    #[error("job {0} has not ended: stop it first, or wait")]
    NotOver(JobId),
    /// A job of no ranks.
    #[error("a job runs with at least 1 trainer")]
    NoRanks,
    /// The stage has no checkpoints.
    #[error("cannot go on from step {step}: stage {stage} writes no checkpoints; resume without a step")]
    NoCheckpoints {
        /// What was asked for.
        step: StepNumber,
        /// The stage that comes next.
        stage: &'static str,
    },
    /// The weights are not those of a mix of this job.
    #[error("the weights cannot be changed: {0}")]
    Weights(String),
}

/// Whether a request can be granted; everything else always can.
///
/// # Errors
/// Why not.
pub fn check(state: &JobState, event: &Event) -> Result<(), Refused> {
    let Event::Resume(resume) = event else { return Ok(()) };
    if matches!(state.life, Life::Succeeded) {
        return Err(Refused::Succeeded(state.job.clone()));
    }
    if !state.is_over() {
        return Err(Refused::NotOver(state.job.clone()));
    }
    if resume.world_size == Some(WorldSize(0)) {
        return Err(Refused::NoRanks);
    }
    if !resume.weights.is_empty() {
        let Some(stage) = state.recipe.mixes_from(state.stage()) else {
            return Err(Refused::Weights("every stage that mixes data sets is done".to_owned()));
        };
        state.recipe.clone().set_weights(stage, &resume.weights).map_err(Refused::Weights)?;
    }
    let stage = state.recipe.stages.get(state.stage());
    match (resume.step, stage) {
        (Some(step), Some(stage)) if stage.training().is_none() => {
            Err(Refused::NoCheckpoints { step, stage: stage.kind() })
        }
        _ => Ok(()),
    }
}

impl Step {
    /// A running stage writes a checkpoint first; what waits stops at once.
    pub(super) fn stop(&mut self) {
        match self.state.life {
            Life::Queued { .. } | Life::BackOff { .. } => {
                self.state.life = Life::Stopped;
                self.tell("stopped", "stopped while it waited; `resume` goes on".to_owned());
            }
            Life::Starting | Life::Regrouping { .. } if self.holds() => {
                self.tell("stop", "asked to stop: what is in memory is saved first".to_owned());
                self.stop_when_running();
            }
            Life::Starting | Life::Regrouping { .. } => {
                self.tell("stop", "asked to stop".to_owned());
                self.end_all(After::Stop);
            }
            Life::Running => {
                self.tell("stop", "asked to stop".to_owned());
                self.enter(Life::Stopping);
                self.commands.extend(super::owed::stops(&self.state));
            }
            Life::Ending { then: After::Failure | After::Requeue, grace_until } => {
                self.tell("stop", "asked to stop".to_owned());
                self.state.life = Life::Ending { then: After::Stop, grace_until };
            }
            Life::Stopping | Life::Ending { .. } | Life::Stopped | Life::Succeeded | Life::Failed { .. } => {}
        }
    }

    /// Whether a membership under way goes on from memory.
    fn holds(&self) -> bool {
        let held = self.state.membership.as_ref().is_some_and(|membership| membership.held.is_some());
        held || matches!(self.state.life, Life::Regrouping { .. })
    }

    /// The membership that is under way saves what is held, and stops.
    fn stop_when_running(&mut self) {
        if let Some(membership) = self.state.membership.as_mut() {
            membership.stop = true;
        }
        if matches!(self.state.life, Life::Regrouping { .. }) {
            self.regroup(None);
        }
    }

    /// Begins anew with fresh budgets; [`check`] said that it may.
    pub(super) fn resume(&mut self, resume: Resume) {
        let stage = self.state.stage();
        if let Some(stage) = self.state.stages.get_mut(stage) {
            stage.checkpoint = resume.step.or(stage.checkpoint);
            stage.chosen = resume.step.is_some();
        }
        self.state.world_size = resume.world_size.unwrap_or(self.state.world_size);
        let mixes = self.state.recipe.mixes_from(stage).filter(|_| !resume.weights.is_empty());
        if let Some(stage) = mixes
            && self.state.recipe.set_weights(stage, &resume.weights).is_ok()
        {
            self.state.weights = Weights::MayChange;
            self.state.fingerprint = self.state.recipe.fingerprint();
            let weights: Vec<String> = resume.weights.iter().map(|(name, weight)| format!("{name}={weight}")).collect();
            self.tell("weights", format!("the mix has new weights from here on: {}", weights.join(", ")));
        }
        self.state.counters = Counters { refused: self.state.counters.refused, ..Counters::default() };
        self.state.life = Life::Queued { free: 0, since: Some(self.now) };
        self.state.intents.clear();
        self.state.alarm = None;
        let from = self.state.stages.get(stage).and_then(|stage| stage.checkpoint);
        let from = from.map_or_else(|| "its beginning".to_owned(), |step| format!("step {step}"));
        let kind = self.state.stage_kind(stage);
        self.tell("resumed", format!("resumed with {} trainers: stage {kind} from {from}", self.state.world_size));
    }

    /// Nobody is left: what was on its way to an end has got there, the rest has failed.
    pub(super) fn abandoned(&mut self) {
        if self.state.is_over() {
            return;
        }
        if let Some(membership) = self.state.membership.as_mut() {
            membership.members.iter_mut().for_each(|member| member.ended = true);
            membership.spares.clear();
        }
        self.tell("abandoned", "its coordinator and its trainers ended together".to_owned());
        match self.state.life {
            Life::Ending { then: After::Success, .. } => self.state.life = Life::Succeeded,
            Life::Stopping | Life::Ending { then: After::Stop, .. } => self.state.life = Life::Stopped,
            _ => self.give_up(5, "its coordinator ended while it ran; `resume` goes on".to_owned()),
        }
    }
}
