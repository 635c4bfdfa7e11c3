//! What the trainers of a generation do together: they find each other, start from one state, and carry out steps, of which
//! replicas are at most one apart when a member is lost.

use super::{
    bugs::Bug,
    storage::{Lineage, Part as Stored, digest},
    trainer::{Phase, Work, Write, stage_of},
    world::{At, World},
};
use common::{
    ids::{Generation, JobId, Step},
    manifest::{DataCursor, Part, Share, paths},
    plan::TrainPlan,
    sampler::OrderSpec,
    status::Progress,
};
use std::{collections::BTreeMap, time::Duration};
use worker::supervisor::{Exit, ipc::Report};

/// How long peers have to come together.
const JOIN: Duration = Duration::from_secs(60);
/// How soon a peer's death is seen, and how long an operation may take with one that cannot be reached.
const DEATH: Duration = Duration::from_millis(200);
const SILENCE: Duration = Duration::from_secs(5);
/// How long the last commit may take.
const COMMIT: Duration = Duration::from_secs(60);

/// A generation's trainers by rank; absent ones are not there, or not with it.
type Group = Vec<Option<At>>;

impl World {
    /// A moment of every generation that has trainers.
    pub fn work(&mut self) {
        let mut groups: BTreeMap<(JobId, Generation), Group> = BTreeMap::new();
        for at in self.living() {
            let Some(process) = self.process(at) else { continue };
            let peer = process.peer.clone();
            let Some(plan) = process.plan() else { continue };
            let (rank, world) = (plan.rank.0 as usize, plan.peers.len());
            if plan.peers.get(rank) != Some(&peer) {
                continue;
            }
            let group = groups.entry((plan.job.clone(), plan.generation)).or_insert_with(|| vec![None; world]);
            group[rank] = Some(at);
        }
        for group in groups.into_values() {
            self.advance(&group);
        }
    }

    fn advance(&mut self, group: &Group) {
        let mut members: Vec<At> = group.iter().flatten().copied().collect();
        for at in members.clone() {
            if self.superseded(&[at], true) {
                self.break_off(at, "a later membership takes this one's place");
                members.retain(|member| *member != at);
            }
        }
        let joining = members.iter().filter(|at| self.joins(**at)).count();
        let near = |world: &World| members.iter().all(|a| members.iter().all(|b| world.reach(a.0, b.0)));
        if joining == group.len() && near(self) {
            return self.begin(&members);
        }
        let now = self.now;
        let whole = joining == 0 && members.len() == group.len();
        let far = !near(self);
        for at in &members {
            let Some(process) = self.process(*at) else { continue };
            match &mut process.phase {
                Phase::Joining { since, .. } if now - *since >= JOIN => self.break_off(*at, "its peers did not come"),
                Phase::Working(work) if whole && !far => work.silent = None,
                Phase::Working(work) => {
                    let since = *work.silent.get_or_insert(now);
                    if now - since >= if whole { SILENCE } else { DEATH } {
                        self.break_off(*at, "a peer is gone");
                    }
                }
                _ => {}
            }
        }
        if whole && !far {
            self.step(&members);
        }
    }

    fn joins(&mut self, at: At) -> bool {
        self.process(at).is_some_and(|process| matches!(process.phase, Phase::Joining { .. }))
    }

    fn plan_of(&mut self, at: At) -> Option<TrainPlan> {
        self.process(at)?.plan().cloned()
    }

    /// The membership is over: a training's state is held, and the next one waited for.
    fn break_off(&mut self, at: At, why: &str) {
        let Some(process) = self.process(at) else { return };
        let phase = std::mem::replace(&mut process.phase, Phase::Idle);
        let plan = match phase {
            Phase::Working(work) => {
                if stage_of(&work.plan).0 {
                    process.held = Some((work.plan.stage, work.done));
                }
                work.plan
            }
            Phase::Joining { plan, .. } => plan,
            Phase::Booting { .. } | Phase::Idle => return,
        };
        let step = process.held.as_ref().map(|(_, done)| Step(done.len() as u64));
        if process.link.waiting().is_none() {
            let (generation, rank, message) = (plan.generation, plan.rank, why.to_owned());
            process.link.report(Report::PeersLost { generation, rank, step, message });
        }
        self.say(&format!("trainer {}: {why}; it holds step {step:?} and waits", at.1));
    }

    /// Whether a plan waits that one of them may not keep waiting, or any of them has one.
    fn superseded(&mut self, members: &[At], at_once: bool) -> bool {
        members.iter().any(|at| {
            let waiting = self.process(*at).and_then(|process| process.link.waiting());
            waiting.is_some_and(|plan| plan.at_once || !at_once)
        })
    }

    /// It says what is wrong, and ends.
    fn fail(&mut self, at: At, generation: Generation, message: &str) {
        let message = message.to_owned();
        let failed = Report::Failed { generation: Some(generation), message: message.clone(), cause: None };
        if self.process(at).is_some_and(|process| process.link.gone_since.is_none()) {
            self.report_once(at, failed);
        }
        self.die(at, Exit::Code(1), &message);
    }

    /// All are there: they take one state and begin.
    fn begin(&mut self, members: &[At]) {
        let Some(plan) = self.plan_of(members[0]) else { return };
        let (trains, steps) = stage_of(&plan);
        let done = match self.first_state(members, &plan, trains) {
            Ok(done) => done,
            Err(error) => {
                for at in members {
                    self.fail(*at, plan.generation, &error);
                }
                return;
            }
        };
        let (job, generation, from) = (&plan.job, plan.generation, done.len());
        self.say(&format!("{job} generation {generation}: {} ranks go on from step {from}", members.len()));
        let computed_at = self.now + self.step;
        for at in members {
            let Some(process) = self.process(*at) else { continue };
            let Phase::Joining { plan, .. } = std::mem::replace(&mut process.phase, Phase::Idle) else { continue };
            let done = done.clone();
            let (apply_at, stopping, written, waits, silent) = (None, false, None, None, None);
            process.held = None;
            process.phase =
                Phase::Working(Work { plan, done, steps, apply_at, computed_at, stopping, written, waits, silent });
        }
    }

    fn first_state(&mut self, members: &[At], plan: &TrainPlan, trains: bool) -> Result<Lineage, String> {
        if !trains {
            return Ok(Lineage::new());
        }
        let at_least = plan.resume.as_ref().map_or(0, |resume| resume.step.0) as usize;
        let mut newest: Option<Lineage> = None;
        for at in members.iter().filter(|_| plan.from_memory) {
            let held = self.process(*at).and_then(|process| process.held.clone());
            let held = held.filter(|(stage, done)| *stage == plan.stage && done.len() >= at_least);
            newest = newest.into_iter().chain(held.map(|(_, done)| done)).max_by_key(Vec::len);
        }
        if let Some(newest) = newest {
            return Ok(newest);
        }
        let kind = plan.recipe.stages[plan.stage].kind();
        let state = match &plan.resume {
            Some(resume) => self.storage.load(&resume.folder, resume.step)?,
            None => Lineage::new(),
        };
        let step = Step(state.len() as u64);
        self.storage.set_aside(&paths::stage_folder(&plan.output, kind), step, plan.generation);
        Ok(state)
    }

    /// Steps, checkpoints, the end.
    fn step(&mut self, members: &[At]) {
        let now = self.now;
        let mut counts = Vec::new();
        for at in members {
            let jitter = self.rng.millis(0, 60);
            let Some(process) = self.process(*at) else { return };
            let Phase::Working(work) = &mut process.phase else { return };
            if work.computed_at <= now && work.apply_at.is_none() && work.waits.is_none() && !work.at_end() {
                work.apply_at = Some(now + jitter);
            }
            counts.push(work.done.len());
        }
        for at in members {
            self.apply(*at);
        }
        let stops = members.iter().any(|at| self.process(*at).is_some_and(|process| process.link.stops()));
        let even = members.iter().all(|at| self.rests(*at));
        if even && self.superseded(members, false) {
            for at in members {
                self.break_off(*at, "a later membership begins after this step");
            }
            return;
        }
        if even {
            for at in members {
                self.next(*at, stops);
            }
            self.finish(members);
        }
    }

    /// Whether a rank has carried out the step at hand.
    fn rests(&mut self, at: At) -> bool {
        self.process(at).is_some_and(|process| match &process.phase {
            Phase::Working(work) => work.apply_at.is_none(),
            _ => false,
        })
    }

    fn apply(&mut self, at: At) {
        let now = self.now;
        let Some(process) = self.process(at) else { return };
        let Phase::Working(work) = &mut process.phase else { return };
        if work.apply_at.is_none_or(|time| time > now) {
            return;
        }
        work.apply_at = None;
        work.computed_at = Duration::MAX;
        work.done.push(work.plan.generation);
        let (step, every, trains) = (work.done.len() as u64, work.every(), stage_of(&work.plan).0);
        let progress = Progress::at(work.plan.generation, work.plan.stage, Step(step), work.steps);
        let writes = trains && (step % every == 0 || work.at_end());
        if process.link.gone_since.is_none() && now - process.link.progress_at >= Duration::from_secs(1) {
            process.link.progress_at = now;
            self.report_once(at, Report::Progress(Box::new(progress)));
        }
        if writes {
            self.write(at);
        }
    }

    /// All ranks stand at the same step: the next one, or what comes after the last.
    fn next(&mut self, at: At, stops: bool) {
        let (now, takes) = (self.now, self.step);
        let Some(process) = self.process(at) else { return };
        let Phase::Working(work) = &mut process.phase else { return };
        if work.waits.is_some() {
            return;
        }
        work.stopping |= stops;
        let trains = stage_of(&work.plan).0;
        if work.at_end() || work.stopping {
            work.waits = Some(now);
            let step = Step(work.done.len() as u64);
            let there = work.resumed_at(step) || work.written == Some(step);
            if trains && !there {
                self.write(at);
            }
        } else if work.computed_at == Duration::MAX {
            work.computed_at = now + takes;
        }
    }

    /// Begins to write a rank's share of a checkpoint of where it stands.
    fn write(&mut self, at: At) {
        let takes = if self.rng.percent(5) { self.rng.millis(1000, 6000) } else { self.rng.millis(50, 900) };
        let (now, early) = (self.now, self.bug == Bug::LatestBeforeDurable);
        let Some(process) = self.process(at) else { return };
        let Phase::Working(work) = &mut process.phase else { return };
        work.written = Some(Step(work.done.len() as u64));
        let (lineage, generation, rank) = (work.done.clone(), work.plan.generation, work.plan.rank);
        let step = Step(lineage.len() as u64);
        let kind = work.plan.recipe.stages[work.plan.stage].kind();
        let folder = paths::checkpoint_folder(&work.plan.output, kind, step);
        let file = paths::part_file(rank, generation);
        let batch = work.plan.recipe.stages[work.plan.stage].training().map_or(1, |training| training.global_batch);
        let part = Part { rank, file: file.clone(), bytes: 1, blake3: digest(&lineage), tensors: BTreeMap::new() };
        let data = DataCursor::new(&OrderSpec::plain(7, &[], batch), step.0 * batch, |_| String::new());
        let share = Box::new(Share { part, data });
        let report = Report::CheckpointWritten { generation, rank, step, share };
        let durable_at = now + takes;
        if early {
            process.link.report(report);
        } else {
            process.writes.push(Write { report, durable_at });
        }
        self.storage.write(folder, file, Stored { lineage, generation, writer: at, durable_at });
    }

    /// The stage is over when its last checkpoint is committed.
    fn finish(&mut self, members: &[At]) {
        let now = self.now;
        let Some(first) = self.process(members[0]) else { return };
        let Phase::Working(work) = &first.phase else { return };
        let Some(waits) = work.waits else { return };
        let (step, generation) = (Step(work.done.len() as u64), work.plan.generation);
        let stopped = work.stopping && !work.at_end();
        let committed = !stage_of(&work.plan).0 || work.resumed_at(step) || first.committed >= Some(step);
        if !committed {
            if now - waits >= COMMIT {
                self.fail(members[0], generation, "the last checkpoint was not committed in time");
            }
            return;
        }
        self.say(&format!("generation {generation} finishes its stage at step {step}, stopped: {stopped}"));
        for at in members {
            let Some(process) = self.process(*at) else { continue };
            let Phase::Working(work) = std::mem::replace(&mut process.phase, Phase::Idle) else { continue };
            // A membership may begin while the others say that they have finished.
            process.held = stage_of(&work.plan).0.then(|| (work.plan.stage, work.done.clone()));
            let (generation, rank) = (work.plan.generation, work.plan.rank);
            let summary = (rank.0 == 0).then(|| serde_json::json!({ "steps": step.0 }));
            process.link.report(Report::StageFinished { generation, rank, summary, stopped });
        }
    }
}

impl Work {
    fn at_end(&self) -> bool {
        self.done.len() as u64 >= self.steps
    }

    fn every(&self) -> u64 {
        let training = self.plan.recipe.stages[self.plan.stage].training();
        training.map_or(u64::MAX, |training| training.checkpoint.every_steps)
    }

    fn resumed_at(&self, step: Step) -> bool {
        self.plan.resume.as_ref().is_some_and(|resume| resume.step == step)
    }
}
