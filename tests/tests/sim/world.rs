//! All that the simulated programs share: machines and the trainers on them, storage, the store, clocks, and the record of what
//! truly happened. Hosts of the simulated network look at it under one lock, never across an await.

use super::{
    bugs::Bug,
    check::History,
    records::Records,
    storage::Storage,
    trace::Trace,
    trainer::{Link, Phase, Process, Signals},
};
use common::ids::{Slot, WorkerId};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tests::Rng;
use tokio::sync::mpsc::Sender;
use worker::supervisor::{Assignment, End, Exit, SupervisorEvent, TrainerRecord, ipc::Report};

/// The world under its lock.
#[derive(Debug, Clone)]
pub struct Shared(Arc<Mutex<World>>);

impl Shared {
    pub fn new(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    pub fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The world.
#[derive(Debug)]
pub struct World {
    pub now: Duration,
    pub rng: Rng,
    pub bug: Bug,
    pub trace: Trace,
    pub machines: Vec<Machine>,
    /// Pairs of machines whose trainers do not reach each other.
    pub cuts: BTreeSet<(usize, usize)>,
    pub storage: Storage,
    pub records: Records,
    pub coordinators: Vec<Coordinator>,
    pub history: History,
    /// How long a step takes.
    pub step: Duration,
}

/// A machine with an agent and its trainers.
#[derive(Debug)]
pub struct Machine {
    pub worker: WorkerId,
    pub processes: BTreeMap<u32, Process>,
    /// What the agent wrote down of its trainers; it outlives the agent.
    pub remembered: BTreeMap<Slot, TrainerRecord>,
    /// The way to the agent; absent while there is none.
    pub agent: Option<Sender<SupervisorEvent>>,
    backlog: VecDeque<SupervisorEvent>,
    next_pid: u32,
    /// Since when nothing has kept its agent from the coordinators; absent while something does.
    pub quiet_since: Option<Duration>,
}

/// A coordinator, from outside.
#[derive(Debug, Default)]
pub struct Coordinator {
    /// How far its wall clock is off, in milliseconds.
    pub wall_offset: i64,
    /// Whether it runs.
    pub up: bool,
}

/// A trainer: its machine and its process.
pub type At = (usize, u32);

impl Machine {
    pub fn new(worker: WorkerId) -> Self {
        Self {
            worker,
            processes: BTreeMap::new(),
            remembered: BTreeMap::new(),
            agent: None,
            backlog: VecDeque::new(),
            next_pid: 100,
            quiet_since: Some(Duration::ZERO),
        }
    }

    /// Hands an event to the agent; what it has no room for waits.
    pub fn tell(&mut self, event: SupervisorEvent) {
        self.backlog.push_back(event);
        self.flush();
    }

    fn flush(&mut self) {
        let Some(agent) = &self.agent else {
            self.backlog.clear();
            return;
        };
        while let Some(event) = self.backlog.pop_front() {
            if let Err(error) = agent.try_send(event) {
                if let tokio::sync::mpsc::error::TrySendError::Full(event) = error {
                    self.backlog.push_front(event);
                }
                return;
            }
        }
    }
}

impl World {
    /// Writes down what happened.
    pub fn say(&mut self, event: &str) {
        self.trace.add(self.now, event);
    }

    /// Whether trainers of two machines reach each other.
    pub fn reach(&self, a: usize, b: usize) -> bool {
        !self.cuts.contains(&(a.min(b), a.max(b)))
    }

    /// A process that lives.
    pub fn process(&mut self, at: At) -> Option<&mut Process> {
        self.machines.get_mut(at.0)?.processes.get_mut(&at.1)
    }

    /// All processes that live.
    pub fn living(&self) -> Vec<At> {
        let machines = self.machines.iter().enumerate();
        machines.flat_map(|(number, machine)| machine.processes.keys().map(move |pid| (number, *pid))).collect()
    }

    /// An agent orders a trainer to be started.
    pub fn start(&mut self, machine: usize, assignment: &Assignment) -> TrainerRecord {
        let Assignment { slot, job, generation, .. } = assignment.clone();
        let boot = self.rng.millis(300, 2500);
        let deaf = self.rng.percent(4);
        let here = &mut self.machines[machine];
        here.next_pid += 1;
        let pid = here.next_pid;
        let worker = here.worker.clone();
        let taken = here.processes.values().find(|process| process.slot == slot).map(|process| process.pid);
        let record = TrainerRecord {
            schema: 1,
            slot,
            pid,
            started_ticks: 1,
            job: job.clone(),
            generation,
            peer: None,
            socket: "/simulated".into(),
            log: format!("/simulated/{worker}-{slot}-{generation}.log").into(),
        };
        here.remembered.insert(slot, record.clone());
        let process = Process {
            pid,
            slot,
            job: job.clone(),
            peer: format!("m{machine}:{pid}"),
            phase: Phase::Booting { until: self.now + boot },
            held: None,
            writes: Vec::new(),
            committed: None,
            commits: Vec::new(),
            signals: Signals { deaf, ..Signals::default() },
            link: Link::default(),
        };
        here.processes.insert(pid, process);
        self.say(&format!("{worker} starts trainer {pid} on slot {slot} for {job} generation {generation}"));
        if let Some(other) = taken {
            self.history.violated(format!("double launch: {worker} slot {slot} has trainer {other} and starts {pid}"));
        }
        record
    }

    /// A process is gone.
    pub fn die(&mut self, at: At, exit: Exit, why: &str) {
        let Some(process) = self.machines[at.0].processes.remove(&at.1) else { return };
        let worker = self.machines[at.0].worker.clone();
        self.say(&format!("trainer {} on {worker} ends: {why} ({exit:?})", at.1));
        self.storage.writer_gone(at, self.now);
        let lost = self.bug == Bug::LostEvent && self.rng.percent(60);
        let machine = &mut self.machines[at.0];
        if machine.agent.is_none() {
            return;
        }
        machine.remembered.remove(&process.slot);
        if lost {
            return;
        }
        let last_lines = vec![why.to_owned()];
        machine.tell(SupervisorEvent::Ended(End {
            slot: process.slot,
            pid: process.pid,
            exit,
            last_lines,
            memory: Default::default(),
            stacks: None,
        }));
    }

    /// An agent begins: the trainers that live connect to it.
    pub fn agent_up(&mut self, machine: usize, agent: Sender<SupervisorEvent>) {
        let here = &mut self.machines[machine];
        here.agent = Some(agent);
        here.backlog.clear();
        let worker = here.worker.clone();
        self.say(&format!("agent {worker} is up"));
    }

    /// What a new agent finds: each record, and whether its process lives.
    pub fn adopt(&mut self, machine: usize) -> Vec<(TrainerRecord, bool)> {
        if self.bug == Bug::DoubleLaunch {
            self.machines[machine].remembered.clear();
        }
        let here = &mut self.machines[machine];
        let lives = |record: &TrainerRecord| here.processes.contains_key(&record.pid);
        let found: Vec<_> = here.remembered.values().map(|record| (record.clone(), lives(record))).collect();
        for (record, lives) in &found {
            if !lives {
                here.remembered.remove(&record.slot);
            }
        }
        for pid in found.iter().filter(|(_, lives)| *lives).map(|(record, _)| record.pid) {
            let Some(process) = here.processes.get_mut(&pid) else { continue };
            process.link.connected();
            if let Some(hello) = process.hello() {
                let (slot, report) = (process.slot, Box::new(hello));
                here.tell(SupervisorEvent::Report { slot, pid, report });
            }
        }
        found
    }

    /// An agent is gone; its trainers go on.
    pub fn agent_down(&mut self, machine: usize) {
        let now = self.now;
        let here = &mut self.machines[machine];
        here.agent = None;
        here.backlog.clear();
        for process in here.processes.values_mut() {
            process.link.gone_since.get_or_insert(now);
        }
    }

    /// A machine loses power: its agent and its trainers are gone, and what was not durable.
    pub fn power_off(&mut self, machine: usize) {
        self.agent_down(machine);
        let pids: Vec<u32> = self.machines[machine].processes.keys().copied().collect();
        for pid in pids {
            self.die((machine, pid), Exit::Signal(9), "power off");
        }
        let now = self.now;
        self.storage.power_lost(machine, now);
    }

    /// A trainer reports something that is not repeated.
    pub fn report_once(&mut self, at: At, report: Report) {
        let Some(slot) = self.process(at).map(|process| process.slot) else { return };
        let report = Box::new(report);
        self.machines[at.0].tell(SupervisorEvent::Report { slot, pid: at.1, report });
    }

    /// Writes what trainers have to say to their agents.
    pub fn flush(&mut self) {
        for machine in &mut self.machines {
            if machine.agent.is_none() {
                continue;
            }
            let mut waiting = Vec::new();
            for process in machine.processes.values_mut().filter(|process| process.link.gone_since.is_none()) {
                let (slot, pid) = (process.slot, process.pid);
                let reports = process.link.unwritten().into_iter().map(Box::new);
                waiting.extend(reports.map(|report| SupervisorEvent::Report { slot, pid, report }));
            }
            machine.backlog.extend(waiting);
            machine.flush();
        }
    }
}
