//! One generation: who takes part in it, and what is known of each.

use super::TrainerKey;
use crate::rendezvous::Place;
use common::{
    cause::Stuck,
    ids::{Generation, JobId, Rank, Step, WorldSize},
    pulse::Pulse,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The members of a generation, by rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Membership {
    /// Its number.
    pub generation: Generation,
    /// The stage it runs, from 0.
    pub stage: usize,
    /// The checkpoint it began from; absent means the beginning of the stage.
    pub resume: Option<Step>,
    /// The newest step that a rank is known to hold in memory, from the membership before; absent when this one does not go
    /// on from memory. A rank may hold a later one: reports are a little behind.
    #[serde(default)]
    pub held: Option<Step>,
    /// Whether the membership before it was broken, so that nobody can end a step in it.
    #[serde(default)]
    pub broken: bool,
    /// Whether it is to write a checkpoint and stop as soon as it runs.
    #[serde(default)]
    pub stop: bool,
    /// When its newest step last grew; absent before the first.
    #[serde(default)]
    pub moved: Option<Timestamp>,
    /// How long its newest step took; absent before the first.
    #[serde(default)]
    pub step_time: Option<Duration>,
    /// Whether it was told that a worker is silent.
    #[serde(default)]
    pub told_silent: bool,
    /// Whether it committed a checkpoint.
    pub committed: bool,
    /// Whether a machine of it is to be left: its ranks write a checkpoint and stop, and the job goes on elsewhere.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// Since when it is in the job's present life (starting, stopping, …).
    pub since: Timestamp,
    /// The members; the index is the rank.
    pub members: Vec<Member>,
    /// Trainers that are started and have no rank yet.
    #[serde(default)]
    pub spares: Vec<Member>,
    /// Until when no more of them are started, as one could not be; absent when none failed.
    #[serde(default)]
    pub no_spares_before: Option<Timestamp>,
}

/// One rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// Where it runs.
    pub place: Place,
    /// Its process; absent before it started.
    pub pid: Option<u32>,
    /// Where its peers reach it; absent before it is ready.
    pub peer: Option<String>,
    /// The newest step it reported.
    pub step: Option<Step>,
    /// How it finished the stage; absent while it works.
    pub finished: Option<Finish>,
    /// Whether its process is known to be gone.
    pub ended: bool,
    /// Since when its worker is back without it; absent while it lives or nothing is known.
    pub missing: Option<Timestamp>,
    /// Since when nothing was heard of its worker for a lease; absent while it is heard of.
    #[serde(default)]
    pub silent: Option<Timestamp>,
    /// Whether it ended with its machine: its place is no place any more.
    #[serde(default)]
    pub gone: bool,
    /// What it said of peers that it lost; absent while it works with them.
    #[serde(default)]
    pub apart: Option<Apart>,
    /// What its machine said of it last; absent while it gets further.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pulse: Option<Told>,
    /// How many seconds of its own its recent steps took; absent before it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_step_s: Option<f64>,
    /// Whether it is slower than the others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub straggles: bool,
    /// Why it is being ended as stuck; absent while it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stuck: Option<Stuck>,
}

/// A rank that has lost its peers, and waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Apart {
    /// Since when.
    pub since: Timestamp,
    /// Which peer, in which operation.
    pub message: String,
}

/// Where a rank stood at a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// When that was heard.
    pub at: Timestamp,
    /// Where it stood.
    pub pulse: Pulse,
}

/// How a rank finished its stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finish {
    /// To its end.
    Whole,
    /// Because of a stop.
    Stopped,
}

impl Membership {
    /// A new membership of which nothing is known yet.
    pub fn new(generation: Generation, stage: usize, resume: Option<Step>, places: Vec<Place>, now: Timestamp) -> Self {
        let members = places.into_iter().map(Member::new).collect();
        Self {
            generation,
            stage,
            resume,
            held: None,
            broken: false,
            stop: false,
            moved: None,
            step_time: None,
            told_silent: false,
            committed: false,
            leaving: false,
            since: now,
            members,
            spares: Vec::new(),
            no_spares_before: None,
        }
    }

    /// The newest step that any rank reported, or that it began from.
    pub fn newest_step(&self) -> Step {
        let reported = self.members.iter().filter_map(|member| member.step).max();
        reported.max(self.held).max(self.resume).unwrap_or_default()
    }

    /// How many ranks there are.
    pub fn world(&self) -> WorldSize {
        WorldSize(u32::try_from(self.members.len()).expect("a generation has fewer than 2^32 ranks"))
    }

    /// The rank of a place; absent when the place takes no part.
    pub fn rank_of(&self, place: &Place) -> Option<Rank> {
        self.world().ranks().zip(&self.members).find_map(|(rank, member)| (member.place == *place).then_some(rank))
    }

    /// A member; absent when there is no such rank.
    pub fn member_mut(&mut self, rank: Rank) -> Option<&mut Member> {
        self.members.get_mut(rank.0 as usize)
    }

    /// Ranks and spares.
    pub fn everyone(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().chain(&self.spares)
    }

    /// A spare by its place; absent when there is none.
    pub fn spare_mut(&mut self, place: &Place) -> Option<&mut Member> {
        self.spares.iter_mut().find(|spare| spare.place == *place)
    }

    /// Whether a worker is silent and nobody was told.
    pub fn silent_untold(&self) -> bool {
        !self.told_silent && self.members.iter().any(|member| member.silent.is_some())
    }

    /// Names the trainer of a member.
    pub fn key(&self, job: &JobId, member: &Member) -> TrainerKey {
        TrainerKey { job: job.clone(), generation: self.generation, place: member.place.clone() }
    }

    /// How many trainers listen for their peers.
    pub fn ready(&self) -> u32 {
        self.count(|member| member.peer.is_some())
    }

    /// How many spares listen for their peers.
    pub fn spares_ready(&self) -> u32 {
        u32::try_from(self.spares.iter().filter(|spare| spare.peer.is_some()).count()).unwrap_or(u32::MAX)
    }

    /// How many processes are not known to be gone, of ranks and of spares.
    pub fn left(&self) -> u32 {
        self.living() + u32::try_from(self.spares.len()).unwrap_or(u32::MAX)
    }

    /// How many ranks are not known to be gone.
    pub fn living(&self) -> u32 {
        self.count(|member| !member.ended)
    }

    /// Whether any rank got further than where the generation began.
    pub fn advanced(&self) -> bool {
        let began = self.held.max(self.resume).unwrap_or_default();
        let further = |member: &Member| member.finished.is_some() || member.step.is_some_and(|step| step > began);
        self.committed || self.members.iter().any(further)
    }

    fn count(&self, counts: impl Fn(&Member) -> bool) -> u32 {
        u32::try_from(self.members.iter().filter(|member| counts(member)).count()).unwrap_or(u32::MAX)
    }
}

impl Member {
    /// A trainer that is to be started.
    pub fn new(place: Place) -> Self {
        Self {
            place,
            pid: None,
            peer: None,
            step: None,
            finished: None,
            ended: false,
            missing: None,
            silent: None,
            gone: false,
            apart: None,
            pulse: None,
            own_step_s: None,
            straggles: false,
            stuck: None,
        }
    }
}
