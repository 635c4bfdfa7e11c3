//! Who is to be killed when: each death makes a membership, so that the faults of a whole run can be told to the trainers beforehand.

use serde::Serialize;
use std::fmt;

/// In what a trainer is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Phase {
    /// At any moment between two steps' ends
    Any,
    /// Its process has just begun, in the place of one that was killed
    Start,
    /// Its model is built and its data are open, in the place of one that was killed; its peers hold the state
    Load,
    /// It computes
    Forward,
    /// The ranks exchange embeddings
    AllGather,
    /// The ranks sum gradients
    AllReduce,
    /// It is about to update its parameters
    Optimizer,
    /// It writes its share of a checkpoint
    Checkpoint,
}

impl Phase {
    /// All of them, in the order in which they are measured.
    pub(super) const ALL: [Self; 8] = [
        Self::Any,
        Self::Start,
        Self::Load,
        Self::Forward,
        Self::AllGather,
        Self::AllReduce,
        Self::Optimizer,
        Self::Checkpoint,
    ];

    /// Whether the trainer is one that was started in the place of another.
    fn is_of_the_next(self) -> bool {
        matches!(self, Self::Start | Self::Load)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "any",
            Self::Start => "start",
            Self::Load => "load",
            Self::Forward => "forward",
            Self::AllGather => "all-gather",
            Self::AllReduce => "all-reduce",
            Self::Optimizer => "optimizer",
            Self::Checkpoint => "checkpoint",
        })
    }
}

/// One death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Planned {
    /// Whose membership it ends.
    pub(super) generation: u64,
    pub(super) rank: u32,
    pub(super) at: Phase,
    /// Of which phase it is a measurement; absent when it only makes room for the one after it.
    pub(super) measures: Option<Phase>,
}

/// So many measured deaths of each phase, ranks by turns; `first` is the membership that begins to train.
pub(super) fn schedule(phases: &[Phase], kills: u32, ranks: u32, first: u64) -> Vec<Planned> {
    let each = |phase: Phase| {
        (0..kills).flat_map(move |number| {
            let rank = (number + 1) % ranks;
            let before = phase.is_of_the_next().then_some((rank, Phase::AllReduce, None));
            before.into_iter().chain([(rank, phase, Some(phase))])
        })
    };
    let all = phases.iter().flat_map(|phase| each(*phase));
    (first..).zip(all).map(|(generation, (rank, at, measures))| Planned { generation, rank, at, measures }).collect()
}

/// What has trainers stop there, to be killed: the variables of their environment. A trainer that is stopped holds up nobody who does
/// not wait for it, and its death is at a moment that is known.
pub(super) fn environment(schedule: &[Planned]) -> [(&'static str, String); 2] {
    let point = |planned: &Planned| {
        let Planned { generation, rank, .. } = planned;
        // Some steps after the last death: each takes one all-reduce at least, and several of the others.
        match planned.at {
            Phase::Any | Phase::Checkpoint => None,
            Phase::Start => Some(format!("start=stop@{generation}")),
            Phase::Load => Some(format!("load=stop@1/{rank}/{generation}")),
            Phase::Optimizer => Some(format!("optimizer=stop@4/{rank}/{generation}")),
            at @ (Phase::Forward | Phase::AllGather | Phase::AllReduce) => {
                Some(format!("{at}=stop@12/{rank}/{generation}"))
            }
        }
    };
    let share = |planned: &Planned| {
        let Planned { generation, rank, at, .. } = planned;
        (*at == Phase::Checkpoint).then(|| format!("write=stop@1-/{rank}/{generation}"))
    };
    let points: Vec<String> = schedule.iter().filter_map(point).collect();
    let shares: Vec<String> = schedule.iter().filter_map(share).collect();
    [("LLM2CLIP_FAILPOINTS", points.join(",")), ("LLM2CLIP_STORAGE_FAULTS", shares.join(","))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_death_has_a_membership_of_its_own_and_a_place_is_made_where_another_has_to_start() {
        let schedule = schedule(&[Phase::Load, Phase::Checkpoint], 2, 2, 4);
        let found: Vec<_> = schedule.iter().map(|p| (p.generation, p.rank, p.at, p.measures.is_some())).collect();
        let expected = [
            (4, 1, Phase::AllReduce, false),
            (5, 1, Phase::Load, true),
            (6, 0, Phase::AllReduce, false),
            (7, 0, Phase::Load, true),
            (8, 1, Phase::Checkpoint, true),
            (9, 0, Phase::Checkpoint, true),
        ];
        assert_eq!(found, expected);
        let [(_, points), (_, shares)] = environment(&schedule);
        assert_eq!(points, "all-reduce=stop@12/1/4,load=stop@1/1/5,all-reduce=stop@12/0/6,load=stop@1/0/7");
        assert_eq!(shares, "write=stop@1-/1/8,write=stop@1-/0/9");
    }
}
