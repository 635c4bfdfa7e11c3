//! What the agent knows of its trainers, and what it decides: no clock, no process, no socket.

use super::message::{Ended, Ready, TrainerRef, WorkerOrder, WorkerReport};
use crate::supervisor::{
    Assignment, End,
    ipc::{Order, Report},
};
use common::{
    cause::Stuck,
    ids::{Generation, JobId, Slot},
    pulse::Pulse,
    status::FailureCause,
};
use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    time::Duration,
};

/// How long a trainer may take to end when the agent ends it for a reason of its own.
const GRACE: Duration = Duration::from_secs(10);
/// How many reports of a trainer are told again to a coordinator that comes back.
const KEPT: usize = 16;

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Start a trainer, and say how that went: [`State::started`] or [`State::not_started`].
    Start(Assignment),
    /// Hand an order to a trainer.
    Order(Slot, Order),
    /// Write down what a restarted agent has to know of a trainer.
    Remember(Slot, Generation, Option<String>),
    /// End a trainer's process within a grace.
    End(Slot, Duration),
    /// Keep what a stuck trainer's threads do, then kill it.
    EndStuck(Slot),
    /// Tell the coordinator.
    Tell(WorkerReport),
    /// Tell it that this machine is being taken away.
    TellLeaving,
    /// All trainers are gone, and so may the agent be.
    Leave,
}

/// A trainer that lives.
#[derive(Debug)]
struct Trainer {
    job: JobId,
    /// The newest membership it was given to.
    generation: Generation,
    pid: u32,
    /// Absent until it said hello.
    peer: Option<String>,
    log: PathBuf,
    /// What it said when it could not go on.
    said: Option<FailureCause>,
    /// Why it is ended as stuck; absent when it is not.
    stuck: Option<Box<Stuck>>,
    /// It was asked to end.
    ending: bool,
    /// What the slot is for once this one is gone.
    next: Option<Assignment>,
    /// What a coordinator that comes back may not know, oldest first.
    kept: VecDeque<WorkerReport>,
}

impl Trainer {
    fn name(&self, slot: Slot) -> TrainerRef {
        TrainerRef { job: self.job.clone(), generation: self.generation, slot }
    }

    fn ready(&self, slot: Slot) -> Option<Ready> {
        let peer = self.peer.clone()?;
        Some(Ready { trainer: self.name(slot), pid: self.pid, peer })
    }
}

/// All slots of a worker.
#[derive(Debug)]
pub struct State {
    slots: u32,
    /// Absent slots are free.
    trainers: BTreeMap<Slot, Trainer>,
    /// The last end on each slot that is free or taken again, until its next trainer lives.
    ends: BTreeMap<Slot, Ended>,
    /// There is a session to tell things over.
    connected: bool,
    /// The agent ends its trainers and then itself.
    leaving: bool,
}

impl State {
    /// No trainer lives.
    pub fn new(slots: u32) -> Self {
        Self { slots, trainers: BTreeMap::new(), ends: BTreeMap::new(), connected: false, leaving: false }
    }

    /// A trainer of the agent before this one lives.
    pub fn adopted(&mut self, trainer: TrainerRef, pid: u32, peer: Option<String>, log: PathBuf) {
        self.insert(trainer, pid, peer, log);
    }

    fn insert(&mut self, trainer: TrainerRef, pid: u32, peer: Option<String>, log: PathBuf) {
        let TrainerRef { job, generation, slot } = trainer;
        let (said, stuck, ending, next, kept) = (None, None, false, None, VecDeque::new());
        self.ends.remove(&slot);
        self.trainers.insert(slot, Trainer { job, generation, pid, peer, log, said, stuck, ending, next, kept });
    }

    /// The trainers that a new session begins with.
    pub fn living(&self) -> Vec<Ready> {
        self.trainers.iter().filter_map(|(slot, trainer)| trainer.ready(*slot)).collect()
    }

    /// A session began: whatever the coordinator may have missed is told.
    pub fn connected(&mut self) -> Vec<Action> {
        self.connected = true;
        let kept = self.trainers.values().flat_map(|trainer| trainer.kept.iter().cloned());
        let ends = self.ends.values().cloned().map(WorkerReport::Ended);
        let leaving = self.leaving.then_some(Action::TellLeaving);
        leaving.into_iter().chain(kept.chain(ends).map(Action::Tell)).collect()
    }

    /// The session is gone. Trainers go on.
    pub fn disconnected(&mut self) {
        self.connected = false;
    }

    /// The agent is told to end, and its trainers with it.
    pub fn leave(&mut self) -> Vec<Action> {
        self.leaving = true;
        let slots: Vec<Slot> = self.trainers.keys().copied().collect();
        let mut actions: Vec<Action> = slots.into_iter().flat_map(|slot| self.end(slot, GRACE)).collect();
        if self.trainers.is_empty() {
            actions.push(Action::Leave);
        }
        actions
    }

    /// This machine is being taken away: every trainer writes a checkpoint and stops, and the coordinator, which ends them then,
    /// is told that nobody is to blame. [`State::leave`] comes after the grace.
    pub fn preempt(&mut self) -> Vec<Action> {
        self.leaving = true;
        if self.trainers.is_empty() {
            return vec![Action::Leave];
        }
        // A stop of one rank is one of all, whether or not the coordinator hears of it.
        let stops = self.trainers.keys().map(|slot| Action::Order(*slot, Order::Stop));
        self.connected.then_some(Action::TellLeaving).into_iter().chain(stops).collect()
    }

    /// What an order of the coordinator leads to.
    pub fn order(&mut self, order: WorkerOrder) -> Vec<Action> {
        match order {
            WorkerOrder::Start { trainer, output } => self.start(trainer, output),
            WorkerOrder::End { trainer, grace } => self.end_ordered(trainer, grace),
            WorkerOrder::EndStuck { trainer, stuck } => match self.named(&trainer) {
                // Of a later membership it is not known that it is stuck.
                Some(living) if living.generation == trainer.generation && living.stuck.is_none() => {
                    living.stuck = Some(stuck);
                    vec![Action::EndStuck(trainer.slot)]
                }
                _ => Vec::new(),
            },
            WorkerOrder::Plan { trainer, plan } => self.pass(&trainer, Order::Plan(plan)),
            WorkerOrder::Stop { trainer } => self.pass(&trainer, Order::Stop),
            WorkerOrder::Commit { trainer, step, manifest } => {
                self.pass(&trainer, Order::CommitManifest { step, manifest })
            }
            WorkerOrder::Unreadable { trainer, message } => match self.named(&trainer) {
                Some(living) => {
                    living.said = Some(FailureCause::Error { message });
                    self.end(trainer.slot, GRACE)
                }
                None => Vec::new(),
            },
        }
    }

    fn start(&mut self, trainer: TrainerRef, output: PathBuf) -> Vec<Action> {
        let slot = trainer.slot;
        if slot.0 >= self.slots {
            let message = format!("slot {slot} is none of this worker's {}; see its --trainers", self.slots);
            return self.refuse(trainer, message);
        }
        if self.leaving {
            return self.refuse(trainer, "the worker is ending".to_owned());
        }
        let assignment = Assignment { slot, job: trainer.job.clone(), generation: trainer.generation, output };
        let Some(living) = self.trainers.get_mut(&slot) else {
            return vec![Action::Start(assignment)];
        };
        if living.job == trainer.job && trainer.generation < living.generation {
            let TrainerRef { job, generation, .. } = trainer;
            tracing::warn!(%slot, %job, %generation, "refused to start for an earlier membership");
            return Vec::new();
        }
        if living.job == trainer.job && !living.ending {
            if trainer.generation > living.generation {
                living.generation = trainer.generation;
                living.kept.clear();
            }
            let remember = Action::Remember(slot, living.generation, living.peer.clone());
            let ready = living.ready(slot).map(WorkerReport::Ready);
            return [remember].into_iter().chain(self.tell(ready)).collect();
        }
        living.next = Some(assignment);
        self.end(slot, GRACE)
    }

    fn refuse(&self, trainer: TrainerRef, message: String) -> Vec<Action> {
        let cause = Some(FailureCause::Spawn { message });
        self.tell(Some(WorkerReport::Ended(Ended { trainer, cause, pid: None, last_lines: Vec::new(), log: None })))
    }

    /// The trainer of a slot if it is the one that is named: of that job, and not of an earlier membership.
    fn named(&mut self, trainer: &TrainerRef) -> Option<&mut Trainer> {
        let found = self.trainers.get_mut(&trainer.slot);
        let found = found.filter(|living| living.job == trainer.job && living.generation <= trainer.generation);
        if found.is_none() {
            let TrainerRef { job, generation, slot } = trainer;
            tracing::warn!(%slot, %job, %generation, "refused an order for a trainer that is not there");
        }
        found
    }

    fn pass(&mut self, trainer: &TrainerRef, order: Order) -> Vec<Action> {
        let slot = trainer.slot;
        let Some(living) = self.named(trainer) else { return Vec::new() };
        if trainer.generation == living.generation {
            return vec![Action::Order(slot, order)];
        }
        living.generation = trainer.generation;
        living.kept.clear();
        vec![Action::Remember(slot, trainer.generation, living.peer.clone()), Action::Order(slot, order)]
    }

    fn end_ordered(&mut self, trainer: TrainerRef, grace: Duration) -> Vec<Action> {
        let slot = trainer.slot;
        match self.trainers.get_mut(&slot) {
            Some(living) if living.job == trainer.job && living.generation > trainer.generation => {
                let TrainerRef { job, generation, .. } = trainer;
                tracing::warn!(%slot, %job, %generation, "refused to end a later membership");
                Vec::new()
            }
            Some(living) if living.job == trainer.job => {
                // The order to start for this membership may never have come: its end is the end of this one's trainer.
                living.generation = trainer.generation;
                living.next = living.next.take().filter(|next| next.job != trainer.job);
                living.ending = false; // A shorter grace holds from now on.
                self.end(slot, grace)
            }
            Some(living) if living.next.as_ref().is_some_and(|next| next.job == trainer.job) => {
                living.next = None;
                self.refuse(trainer, "it was ended before it was started".to_owned())
            }
            _ => match self.ends.get(&slot).filter(|end| end.trainer.job == trainer.job) {
                // Told under the membership that asks: a report of an earlier one would be refused, and asked for for ever.
                Some(end) => self.tell(Some(WorkerReport::Ended(Ended { trainer, ..end.clone() }))),
                None => self.refuse(trainer, "there is no such trainer on this worker".to_owned()),
            },
        }
    }

    fn end(&mut self, slot: Slot, grace: Duration) -> Vec<Action> {
        match self.trainers.get_mut(&slot) {
            Some(living) if !living.ending => {
                living.ending = true;
                vec![Action::End(slot, grace)]
            }
            _ => Vec::new(),
        }
    }

    /// A trainer was started.
    pub fn started(&mut self, assignment: &Assignment, pid: u32, log: PathBuf) {
        let Assignment { slot, job, generation, .. } = assignment.clone();
        self.insert(TrainerRef { job, generation, slot }, pid, None, log);
    }

    /// A trainer could not be started.
    pub fn not_started(&mut self, assignment: &Assignment, message: String) -> Vec<Action> {
        let Assignment { slot, job, generation, .. } = assignment.clone();
        let trainer = TrainerRef { job, generation, slot };
        let cause = Some(FailureCause::Spawn { message });
        self.ended_as(Ended { trainer, cause, pid: None, last_lines: Vec::new(), log: None })
    }

    /// A trainer reported something.
    pub fn report(&mut self, slot: Slot, pid: u32, report: Report) -> Vec<Action> {
        let Some(living) = self.trainers.get_mut(&slot).filter(|living| living.pid == pid) else {
            return Vec::new();
        };
        let job = living.job.clone();
        let name = |generation| TrainerRef { job, generation, slot };
        let told = match report {
            Report::Hello { peer, .. } => {
                living.peer = Some(peer);
                let remember = Action::Remember(slot, living.generation, living.peer.clone());
                let ready = living.ready(slot).map(WorkerReport::Ready);
                return [remember].into_iter().chain(self.tell(ready)).collect();
            }
            Report::Progress(progress) => {
                let trainer = name(progress.generation);
                return self.tell(Some(WorkerReport::Progress { trainer, progress }));
            }
            Report::Failed { message, cause, .. } => {
                living.said = Some(cause.unwrap_or(FailureCause::Error { message }));
                return Vec::new();
            }
            Report::CheckpointWritten { generation, rank, step, share } => {
                WorkerReport::CheckpointWritten { trainer: name(generation), rank, step, share }
            }
            Report::StorageTrouble { generation, trouble } => {
                WorkerReport::StorageTrouble { trainer: name(generation), trouble }
            }
            Report::CheckpointCommitted { generation, step } => {
                WorkerReport::CheckpointCommitted { trainer: name(generation), step }
            }
            Report::PeersLost { generation, rank, step, message } => {
                WorkerReport::PeersLost { trainer: name(generation), rank, step, message }
            }
            Report::StageFinished { generation, rank, summary, stopped } => {
                WorkerReport::StageFinished { trainer: name(generation), rank, summary, stopped }
            }
        };
        living.keep(told.clone());
        self.tell(Some(told))
    }

    /// A trainer has got no further for a while, or goes on after that.
    pub fn pulse(&mut self, slot: Slot, pid: u32, pulse: Box<Pulse>) -> Vec<Action> {
        let living = self.trainers.get(&slot).filter(|living| living.pid == pid);
        let report = living.map(|living| WorkerReport::Pulse {
            trainer: TrainerRef { generation: pulse.generation, ..living.name(slot) },
            pulse,
        });
        self.tell(report)
    }

    /// A trainer's process is gone.
    pub fn ended(&mut self, end: End) -> Vec<Action> {
        let End { slot, pid, exit, last_lines, memory, stacks } = end;
        if self.trainers.get(&slot).is_none_or(|living| living.pid != pid) {
            return Vec::new();
        }
        let Some(gone) = self.trainers.remove(&slot) else { return Vec::new() };
        let trainer = gone.name(slot);
        let ran_out = memory.ran_out(gone.said.as_ref().and_then(words));
        let cause = match gone.stuck {
            Some(stuck) => Some(FailureCause::Hung(Box::new(Stuck { stacks, ..*stuck }))),
            None => ran_out.map(FailureCause::OutOfMemory).or_else(|| exit.cause(gone.said)),
        };
        let mut actions = self.ended_as(Ended { trainer, cause, pid: Some(pid), last_lines, log: Some(gone.log) });
        match gone.next {
            Some(next) if self.leaving => {
                let trainer = TrainerRef { job: next.job, generation: next.generation, slot };
                actions.extend(self.refuse(trainer, "the worker is ending".to_owned()));
            }
            Some(next) => actions.push(Action::Start(next)),
            None => {}
        }
        if self.leaving && self.trainers.is_empty() {
            actions.push(Action::Leave);
        }
        actions
    }

    /// Tells of an end now, and again to a coordinator that comes back.
    pub fn ended_as(&mut self, end: Ended) -> Vec<Action> {
        self.ends.insert(end.trainer.slot, end.clone());
        self.tell(Some(WorkerReport::Ended(end)))
    }

    fn tell(&self, report: Option<WorkerReport>) -> Vec<Action> {
        report.filter(|_| self.connected).map(Action::Tell).into_iter().collect()
    }
}

/// A last word that is no typed cause yet.
fn words(said: &FailureCause) -> Option<&str> {
    if let FailureCause::Error { message } = said { Some(message) } else { None }
}

impl Trainer {
    /// Keeps a report for a coordinator that comes back; one that is told again by the trainer is kept once.
    fn keep(&mut self, report: WorkerReport) {
        if self.kept.contains(&report) {
            return;
        }
        if self.kept.len() >= KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(report);
    }
}

#[cfg(test)]
mod tests;
