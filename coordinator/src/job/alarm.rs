//! Storage that takes no checkpoints: an alarm that stands until one is committed again. The training goes on meanwhile.

use super::transition::Step;
use common::{
    alarm::{StorageAlarm, StorageTrouble, Trouble},
    ids::{Generation, Rank, Step as StepNumber},
    manifest::Share,
};
use std::mem::discriminant;

impl Step {
    /// A rank has no checkpoint of a step.
    pub(super) fn troubled(&mut self, generation: Generation, trouble: StorageTrouble) {
        let Some(membership) = self.current(generation) else { return };
        let stage = membership.stage;
        if let Trouble::Damaged { instead, .. } = trouble.what {
            return self.fell_back(stage, &trouble, instead);
        }
        let step = trouble.step;
        self.give_up_share(step, trouble.rank);
        let message = trouble.to_string();
        match &mut self.state.alarm {
            Some(alarm) => {
                // Every rank may say so of the same step, and of one that is tried again.
                alarm.missed += u64::from(step > alarm.newest.step);
                let another = discriminant(&alarm.newest.what) != discriminant(&trouble.what);
                if step >= alarm.newest.step {
                    alarm.newest = trouble;
                }
                if another {
                    self.tell("checkpoint-trouble", format!("no checkpoint of step {step} either: {message}"));
                }
            }
            None => {
                self.state.alarm = Some(StorageAlarm { since: self.now, since_step: step, missed: 1, newest: trouble });
                self.tell(
                    "checkpoint-trouble",
                    format!("no checkpoint of step {step}, the training goes on: {message}"),
                );
            }
        }
    }

    /// What a rank wrote of a step is not there. The others' shares may be those of a second try, whose reports were quicker than this
    /// one: they stay, and with that rank's new one the checkpoint is whole.
    fn give_up_share(&mut self, step: StepNumber, rank: Rank) {
        if let Some(intent) = self.state.intents.remove(&step) {
            let data = intent.manifest.data;
            let shares = intent.manifest.parts.into_iter().map(|part| (part.rank, Share { part, data: data.clone() }));
            self.state.shares.insert(step, shares.collect());
        }
        if let Some(shares) = self.state.shares.get_mut(&step) {
            shares.remove(&rank);
        }
    }

    /// A checkpoint is committed.
    pub(super) fn storage_works(&mut self, step: StepNumber) {
        let Some(alarm) = self.state.alarm.take_if(|alarm| alarm.since_step <= step) else { return };
        let missed = alarm.missed - u64::from(alarm.newest.step == step);
        let (since, seconds) = (alarm.since_step, self.now.since(alarm.since).as_secs());
        let message = format!(
            "checkpoints are written again: that of step {step}, {seconds} s after step {since}; {missed} are missing"
        );
        self.tell("checkpoint-works", message);
    }

    /// A checkpoint is damaged: the trainers went on from an earlier one.
    fn fell_back(&mut self, stage: usize, trouble: &StorageTrouble, instead: StepNumber) {
        let Some(record) = self.state.stages.get_mut(stage) else { return };
        // Several ranks say so; and what was committed since is newer than both.
        if record.checkpoint.is_none_or(|known| known <= instead || known > trouble.step) {
            return;
        }
        record.checkpoint = Some(instead);
        self.tell("checkpoint-damaged", trouble.to_string());
    }
}
