//! When every rank's share is in, one rank is told to create the manifest.

use super::{Command, Intent, JobState, Life, transition::Step};
use common::{
    ids::{Generation, Rank, Step as StepNumber},
    manifest::{FORMAT, Manifest, Share},
};

/// How many steps may have incomplete shares at a time; the oldest go.
const OPEN_STEPS: usize = 8;

impl Step {
    /// A share is on storage.
    pub(super) fn written(&mut self, generation: Generation, rank: Rank, step: StepNumber, share: Share) {
        let Some(membership) = self.current(generation) else { return };
        let (world, stage) = (membership.world(), membership.stage);
        let known = self.state.stages.get(stage).and_then(|stage| stage.checkpoint);
        let done =
            self.state.membership.as_ref().is_some_and(|m| m.committed) && known.is_some_and(|known| known >= step);
        let ordered = self.state.intents.get(&step).is_some_and(|intent| intent.manifest.generation == generation);
        if rank.0 >= world.0 || done || ordered {
            return;
        }
        let shares = self.state.shares.entry(step).or_default();
        shares.insert(rank, share);
        if shares.len() < world.0 as usize {
            while self.state.shares.len() > OPEN_STEPS {
                self.state.shares.pop_first();
            }
            return;
        }
        let Some(shares) = self.state.shares.remove(&step) else { return };
        self.order(stage, step, shares.into_values().collect());
    }

    fn order(&mut self, stage: usize, step: StepNumber, shares: Vec<Share>) {
        let Some(first) = shares.first() else { return };
        if let Some(other) = shares.iter().find(|share| share.data != first.data) {
            let (a, b) = (first.part.rank, other.part.rank);
            self.tell(
                "refused",
                format!("step {step} is not committed: ranks {a} and {b} disagree on where the data stands"),
            );
            return;
        }
        let manifest = Manifest {
            format: FORMAT,
            job: self.state.job.clone(),
            generation: self.state.generation,
            step,
            world: self.state.membership.as_ref().map(super::Membership::world).unwrap_or_default(),
            stage: self.state.stage_kind(stage).to_owned(),
            recipe_fingerprint: self.state.fingerprint.clone(),
            data: first.data.clone(),
            parts: shares.into_iter().map(|share| share.part).collect(),
        };
        self.state.intents.insert(step, Intent { stage, manifest });
        self.commands.extend(
            commits(&self.state)
                .into_iter()
                .filter(|command| matches!(command, Command::CommitManifest { step: ordered, .. } if *ordered == step)),
        );
    }

    /// A manifest was created.
    pub(super) fn committed(&mut self, generation: Generation, step: StepNumber) {
        if self.current(generation).is_none() {
            return;
        }
        if let Some(membership) = self.state.membership.as_mut() {
            membership.committed = true;
        }
        self.record(step);
    }

    /// A manifest is there, though nobody said that it was created.
    pub(super) fn found(&mut self, step: StepNumber) {
        self.record(step);
    }

    fn record(&mut self, step: StepNumber) {
        let Some(intent) = self.state.intents.get(&step) else { return };
        let (stage, generation) = (intent.stage, intent.manifest.generation);
        self.state.intents.retain(|open, intent| *open > step || intent.stage != stage);
        self.state.shares.retain(|open, _| *open > step);
        let Some(record) = self.state.stages.get_mut(stage) else { return };
        // What an ended generation left must not hide a newer one's.
        if generation == self.state.generation || record.checkpoint.is_none_or(|known| known < step) {
            (record.checkpoint, record.chosen) = (Some(step), false);
            self.state.counters.no_progress = 0;
            self.tell("checkpoint", format!("the checkpoint of step {step} is committed"));
            self.storage_works(step);
        }
    }
}

/// The ordered commits of the newest membership that were not confirmed, for the lowest rank that lives.
pub(super) fn commits(state: &JobState) -> Vec<Command> {
    let Some(membership) = state.active().filter(|_| !matches!(state.life, Life::Ending { .. })) else {
        return Vec::new();
    };
    let Some(member) = membership.members.iter().find(|member| !member.ended) else { return Vec::new() };
    let mine = state.intents.iter().filter(|(_, intent)| intent.manifest.generation == membership.generation);
    mine.map(|(step, intent)| Command::CommitManifest {
        trainer: membership.key(&state.job, member),
        step: *step,
        manifest: Box::new(intent.manifest.clone()),
    })
    .collect()
}
