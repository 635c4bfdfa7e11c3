//! From free places to a running generation, and from stage to stage.

use super::{After, Command, Finish, JobState, Life, Member, Membership, transition::Step};
use crate::rendezvous::Place;
use common::{
    ids::{Generation, Rank},
    manifest::paths,
    plan::{ResumePoint, TrainPlan},
};

impl Step {
    /// Begins the next generation on these places, which are in the order of ranks.
    pub(super) fn begin(&mut self, places: Vec<Place>) {
        let stage = self.state.stage();
        let resume = self.state.stages.get(stage).and_then(|stage| stage.checkpoint);
        self.state.generation = self.state.generation.next();
        self.state.shares.clear();
        self.state.intents.clear();
        let generation = self.state.generation;
        let world = places.len();
        let before = self.state.membership.take();
        let mut membership = Membership::new(generation, stage, resume, places, self.now);
        if let Some(before) = before {
            membership.no_spares_before = before.no_spares_before;
            let others = before.spares.into_iter().filter(|spare| membership.rank_of(&spare.place).is_none());
            membership.spares = others.map(|spare| Member::new(spare.place)).collect();
        }
        let job = &self.state.job;
        let start = |member: &Member| Command::StartTrainer {
            trainer: membership.key(job, member),
            output: self.state.recipe.output.clone(),
        };
        self.commands.extend(membership.everyone().map(start));
        self.state.membership = Some(membership);
        self.state.life = Life::Starting;
        let from = resume.map_or_else(|| "its beginning".to_owned(), |step| format!("step {step}"));
        let kind = self.state.stage_kind(stage);
        let trainers = if world == 1 { "trainer" } else { "trainers" };
        self.tell("generation", format!("generation {generation}: {world} {trainers} for stage {kind} from {from}"));
    }

    /// A trainer listens; when all do, all get their plans.
    pub(super) fn ready(&mut self, generation: Generation, place: &Place, pid: u32, peer: String) {
        let starting = matches!(self.state.life, Life::Starting);
        let here = |m: &Membership| m.everyone().any(|member| member.place == *place);
        if generation <= self.state.generation && !self.state.active().is_some_and(here) {
            // Started, and given up before it was heard of: nobody else would ever end it.
            return self.end_stray(generation, place.clone());
        }
        let Some(membership) = self.current(generation) else { return };
        if let Some(spare) = membership.spare_mut(place) {
            (spare.pid, spare.peer) = (Some(pid), Some(peer));
            return self.grow();
        }
        let Some(rank) = membership.rank_of(place) else { return };
        let Some(member) = membership.member_mut(rank) else { return };
        if member.ended {
            // Another process in its place: the membership goes on without it, or ends.
            if member.pid != Some(pid) {
                self.end_stray(generation, place.clone());
            }
            return;
        }
        member.pid = Some(pid);
        member.missing = None;
        if starting {
            member.peer = Some(peer);
            self.run_when_ready();
        } else if matches!(self.state.life, Life::Running | Life::Stopping) {
            // It came back, or asks again: its plan is what it was.
            let key = self.state.active().and_then(|m| Some(m.key(&self.state.job, m.members.get(rank.0 as usize)?)));
            let owed =
                super::recover(&self.state).into_iter().filter(|command| Some(command.trainer()) == key.as_ref());
            self.commands.extend(owed);
        }
    }

    pub(super) fn run_when_ready(&mut self) {
        let all = self.state.membership.as_ref().is_some_and(|m| m.ready() == m.world().0);
        if !all {
            return;
        }
        self.enter(Life::Running);
        self.commands.extend(plans(&self.state));
        self.commands.extend(super::leaving::stops(&self.state));
        let generation = self.state.generation;
        self.tell("running", format!("all trainers of generation {generation} have their plans"));
        if self.state.membership.as_ref().is_some_and(|membership| membership.stop) {
            self.stop();
        }
    }

    /// A rank finished; when all did, the next stage begins, or the job ends.
    pub(super) fn finished(
        &mut self,
        generation: Generation,
        rank: Rank,
        summary: Option<serde_json::Value>,
        stopped: bool,
    ) {
        let working = matches!(self.state.life, Life::Running | Life::Stopping);
        let Some(membership) = self.current(generation) else { return };
        let stage = membership.stage;
        let Some(member) = membership.member_mut(rank).filter(|member| working && member.finished.is_none()) else {
            return;
        };
        member.finished = Some(if stopped { Finish::Stopped } else { Finish::Whole });
        if let (Some(stage), Some(summary)) = (self.state.stages.get_mut(stage), summary) {
            stage.summary.get_or_insert(summary);
        }
        let Some(membership) = &self.state.membership else { return };
        if membership.members.iter().all(|member| member.finished.is_some()) {
            let whole = membership.members.iter().all(|member| member.finished == Some(Finish::Whole));
            self.stage_over(stage, whole);
        }
    }

    fn stage_over(&mut self, stage: usize, whole: bool) {
        let stopping = matches!(self.state.life, Life::Stopping);
        if whole {
            if let Some(stage) = self.state.stages.get_mut(stage) {
                stage.done = true;
            }
            self.state.counters.no_progress = 0;
            let kind = self.state.stage_kind(stage);
            self.tell("stage-done", format!("stage {kind} is done"));
        }
        if self.state.stage() == self.state.stages.len() {
            self.end_all(After::Success);
        } else if stopping {
            self.end_all(After::Stop);
        } else if whole && !self.state.membership.as_ref().is_some_and(|membership| membership.leaving) {
            self.begin(self.next_places());
        } else {
            // The trainers stopped by themselves, for they had no agent for too long, or because a machine is to be left.
            self.end_all(After::Requeue);
        }
    }
}

impl JobState {
    /// The name of a stage.
    pub(super) fn stage_kind(&self, stage: usize) -> &'static str {
        self.recipe.stages.get(stage).map_or("(none)", |stage| stage.kind())
    }
}

/// The plan of every rank of the newest membership whose process may live.
pub(super) fn plans(state: &JobState) -> Vec<Command> {
    let Some(membership) = state.active() else { return Vec::new() };
    let peers: Vec<String> = membership.members.iter().map(|m| m.peer.clone().unwrap_or_default()).collect();
    let output = &state.recipe.output;
    let resume = membership.resume.map(|step| ResumePoint {
        step,
        folder: paths::checkpoint_folder(state.recipe.checkpoint_root(), state.stage_kind(membership.stage), step),
        weights: state.weights,
        chosen: state.stages.get(membership.stage).is_some_and(|stage| stage.chosen),
    });
    let plan = |rank: Rank| TrainPlan {
        schema: 1,
        job: state.job.clone(),
        generation: membership.generation,
        rank,
        peers: peers.clone(),
        stage: membership.stage,
        resume: resume.clone(),
        from_memory: membership.held.is_some(),
        at_once: membership.broken,
        recipe: state.recipe.clone(),
        output: output.clone(),
    };
    let living = membership.world().ranks().zip(&membership.members).filter(|(_, member)| !member.ended);
    living
        .map(|(rank, member)| Command::SendPlan {
            trainer: membership.key(&state.job, member),
            plan: Box::new(plan(rank)),
        })
        .collect()
}
