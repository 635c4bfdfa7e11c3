//! All that is known of a job.

use super::membership::Membership;
use common::{
    alarm::StorageAlarm,
    ids::{Generation, JobId, Rank, Step, WorldSize},
    manifest::{Manifest, Share, Weights},
    recipe::Recipe,
    status::{Event as Told, Failure, Progress},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// A job that a user wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission {
    /// Its id.
    pub job: JobId,
    /// What it is.
    pub recipe: Recipe,
    /// With how many ranks it runs.
    pub world_size: WorldSize,
}

/// A job's record, as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobState {
    /// Its id.
    pub job: JobId,
    /// What it is; nothing but the weights of a mix ever changes, when a user says so.
    pub recipe: Recipe,
    /// Whether a user has changed them.
    #[serde(default)]
    pub weights: Weights,
    /// The recipe's fingerprint, as manifests carry it.
    pub fingerprint: String,
    /// With how many ranks it runs.
    pub world_size: WorldSize,
    /// When it was submitted.
    pub created: Timestamp,
    /// When it last changed.
    pub updated: Timestamp,
    /// Where it is in its life.
    pub life: Life,
    /// The newest generation's number; 0 before the first.
    pub generation: Generation,
    /// The newest membership; absent before the first.
    pub membership: Option<Membership>,
    /// Every stage of the recipe.
    pub stages: Vec<StageState>,
    /// Checkpoints of the newest generation of which shares are in and no commit was ordered, by step, by rank.
    pub shares: BTreeMap<Step, BTreeMap<Rank, Share>>,
    /// Commits that were ordered and not confirmed, by step. The newest generation's, and what an ended one left.
    pub intents: BTreeMap<Step, Intent>,
    /// Why there are no new checkpoints; absent while there are.
    #[serde(default)]
    pub alarm: Option<StorageAlarm>,
    /// Everything that was lost. The first of a generation is the one that ended it.
    pub failures: Vec<Failure>,
    /// What is spent of the budgets.
    pub counters: Counters,
    /// What happened, oldest first, at most [`super::journal::KEPT`].
    pub events: VecDeque<Told>,
    /// How many events there ever were.
    pub sequence: u64,
}

/// Where a job is in its life. All but the first two and the last three have a membership.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "life", rename_all = "kebab-case")]
pub enum Life {
    /// It waits for free places.
    Queued {
        /// How many were free when it last looked.
        free: u32,
        /// Since when; absent in records of earlier versions.
        #[serde(default)]
        since: Option<Timestamp>,
    },
    /// It waits before the next try.
    BackOff {
        /// Until when.
        until: Timestamp,
    },
    /// Trainers were ordered; some have not reported yet.
    Starting,
    /// All have their plans.
    Running,
    /// Ranks were lost with their machines. The others hold the state in their memory until there are places.
    Regrouping {
        /// Since when.
        since: Timestamp,
        /// How many places are missing.
        missing: u32,
    },
    /// All were told to write a checkpoint and stop.
    Stopping,
    /// All were told to end; some have not yet.
    Ending {
        /// What comes then.
        then: After,
        /// Until when an end by SIGKILL was not ours.
        grace_until: Timestamp,
    },
    /// Stopped by a user.
    Stopped,
    /// All stages are done.
    Succeeded,
    /// It gave up.
    Failed {
        /// The exit code of `run`.
        exit_code: u8,
        /// One sentence.
        message: String,
    },
}

/// What comes when the trainers of a generation have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum After {
    /// The generation failed: look at the budget.
    Failure,
    /// Go on from the newest checkpoint; nobody is to blame.
    Requeue,
    /// A user stopped it.
    Stop,
    /// All stages are done.
    Success,
}

/// What is known of a stage.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct StageState {
    /// Whether it is done.
    pub done: bool,
    /// What it said at its end.
    pub summary: Option<serde_json::Value>,
    /// The checkpoint to go on from: the newest committed one, or the one a user chose.
    pub checkpoint: Option<Step>,
    /// Whether a user chose it, and nothing newer is there: no other will do.
    #[serde(default)]
    pub chosen: bool,
    /// The newest report.
    pub progress: Option<Progress>,
}

/// A commit that was ordered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// The stage, from 0.
    pub stage: usize,
    /// What `manifest.json` is to hold.
    pub manifest: Manifest,
}

/// What is spent of the budgets since the submission or the last resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Generations that failed.
    pub failures: u32,
    /// Generations that failed in a row without a newer committed step.
    pub no_progress: u32,
    /// Times that a machine of the job was taken away with notice; nobody is to blame for these.
    #[serde(default)]
    pub preemptions: u32,
    /// Reports that were refused because their generation was over.
    pub refused: u64,
}

impl JobState {
    /// A job that was just submitted.
    pub fn submitted(submission: Submission, now: Timestamp) -> Self {
        let fingerprint = submission.recipe.fingerprint();
        let stages = submission.recipe.stages.iter().map(|_| StageState::default()).collect();
        let mut state = Self {
            job: submission.job,
            recipe: submission.recipe,
            weights: Weights::AsWritten,
            fingerprint,
            world_size: submission.world_size,
            created: now,
            updated: now,
            life: Life::Queued { free: 0, since: Some(now) },
            generation: Generation(0),
            membership: None,
            stages,
            shares: BTreeMap::new(),
            intents: BTreeMap::new(),
            alarm: None,
            failures: Vec::new(),
            counters: Counters::default(),
            events: VecDeque::new(),
            sequence: 0,
        };
        let world = state.world_size;
        state.tell(now, "submitted", format!("submitted for {world} trainers"));
        state
    }

    /// The first stage that is not done; the number of stages when all are.
    pub fn stage(&self) -> usize {
        self.stages.iter().position(|stage| !stage.done).unwrap_or(self.stages.len())
    }

    /// The fewest and the most ranks it may run with.
    pub fn ranks(&self) -> (u32, u32) {
        let launched = self.world_size.0;
        match self.recipe.elastic {
            None => (launched, launched),
            Some(elastic) => (elastic.min_ranks.min(launched), elastic.max_ranks.unwrap_or(launched).max(launched)),
        }
    }

    /// How many trainers it would have beside its ranks, to grow or to have them ready, and has not.
    pub fn spares_wanted(&self) -> u32 {
        let (Some(elastic), Some(membership)) = (self.recipe.elastic, self.membership.as_ref()) else { return 0 };
        let more = self.ranks().1.saturating_sub(membership.world().0);
        (more + elastic.spares).saturating_sub(u32::try_from(membership.spares.len()).unwrap_or(u32::MAX))
    }

    /// Whether it is time that decides what it does when no place is free.
    pub fn waits_for_places_or_time(&self) -> bool {
        matches!(self.life, Life::Regrouping { .. }) || self.recipe.elastic.is_some() && self.wants_places()
    }

    /// How many places it cannot do without.
    pub fn places_needed(&self) -> usize {
        let least = self.ranks().0 as usize;
        match (&self.life, &self.membership) {
            (Life::Queued { .. }, _) => least,
            (Life::Regrouping { .. }, Some(membership)) => least.saturating_sub(membership.living() as usize),
            _ => 0,
        }
    }

    /// Whether it would take a place if one were free.
    pub fn wants_places(&self) -> bool {
        match self.life {
            Life::Queued { .. } | Life::Regrouping { .. } => true,
            Life::Running => self.spares_wanted() > 0,
            _ => false,
        }
    }

    /// Whether it differs from this one in nothing but how many reports were refused.
    pub fn only_refused_more_than(&self, other: &Self) -> bool {
        let counters = Counters { refused: other.counters.refused, ..self.counters };
        self.counters != other.counters && Self { counters, updated: other.updated, ..self.clone() } == *other
    }

    /// Whether it can no longer change by itself.
    pub fn is_over(&self) -> bool {
        matches!(self.life, Life::Stopped | Life::Succeeded | Life::Failed { .. })
    }

    /// The membership, if its processes are not all known to be gone.
    pub fn active(&self) -> Option<&Membership> {
        match self.life {
            Life::Starting | Life::Running | Life::Regrouping { .. } | Life::Stopping | Life::Ending { .. } => {
                self.membership.as_ref()
            }
            Life::Queued { .. } | Life::BackOff { .. } | Life::Stopped | Life::Succeeded | Life::Failed { .. } => None,
        }
    }
}
