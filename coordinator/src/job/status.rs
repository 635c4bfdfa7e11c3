//! A job as the outside sees it.

use super::{After, JobState, Life, Membership};
use common::{
    status::{JobStatus, Phase, RankStatus, StageStatus, WaitReason},
    time::Timestamp,
};

/// What to show of a job. `now` decides whether a wait is over.
pub fn status(state: &JobState, now: Timestamp) -> JobStatus {
    let stages = state.stages.iter().enumerate().map(|(index, stage)| StageStatus {
        kind: state.stage_kind(index).to_owned(),
        done: stage.done,
        summary: stage.summary.clone(),
        checkpoint: stage.checkpoint,
        progress: stage.progress.clone(),
    });
    JobStatus {
        job: state.job.clone(),
        phase: phase(state, now),
        generation: state.generation,
        stage: state.stage(),
        stages: stages.collect(),
        ranks: state.membership.as_ref().map(ranks).unwrap_or_default(),
        spares: state.active().map(Membership::spares_ready).unwrap_or_default(),
        alarm: state.alarm.clone(),
        failures: state.failures.clone(),
        output: state.recipe.output.clone(),
        checkpoints: state.recipe.checkpoints.clone().map(Into::into),
        created: state.created,
        updated: state.updated,
    }
}

fn ranks(membership: &Membership) -> Vec<RankStatus> {
    let ranks = membership.world().ranks().zip(&membership.members);
    ranks
        .map(|(rank, member)| RankStatus {
            rank,
            worker: member.place.worker.clone(),
            slot: member.place.slot,
            pid: member.pid,
            peer: member.peer.clone(),
            step: member.step,
            own_step_s: member.own_step_s,
            straggles: member.straggles,
        })
        .collect()
}

fn phase(state: &JobState, now: Timestamp) -> Phase {
    let needed = state.world_size.0;
    let membership = |count: fn(&Membership) -> u32| state.membership.as_ref().map(count).unwrap_or_default();
    let waiting = |reason| Phase::Waiting { reason };
    match &state.life {
        Life::Queued { free, .. } => waiting(WaitReason::NotEnoughTrainers { needed, free: *free }),
        Life::BackOff { until } if *until > now => waiting(WaitReason::BackOff { until: *until }),
        Life::BackOff { .. } => waiting(WaitReason::NotEnoughTrainers { needed, free: 0 }),
        Life::Starting => waiting(WaitReason::TrainersStarting {
            ready: membership(Membership::ready),
            ordered: membership(|membership| membership.world().0),
        }),
        Life::Regrouping { missing, .. } => {
            waiting(WaitReason::Regrouping { holding: membership(Membership::living), missing: *missing })
        }
        Life::Running | Life::Ending { then: After::Success, .. } => Phase::Running,
        Life::Stopping | Life::Ending { then: After::Stop, .. } => Phase::Stopping,
        Life::Ending { .. } => waiting(WaitReason::TrainersEnding { left: membership(Membership::left) }),
        Life::Stopped => Phase::Stopped,
        Life::Succeeded => Phase::Succeeded,
        Life::Failed { exit_code, message } => Phase::Failed { exit_code: *exit_code, message: message.clone() },
    }
}
