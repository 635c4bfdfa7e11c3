//! What a seed makes: how large the cluster is, what it trains, what goes wrong and when.

use common::{ids::WorldSize, recipe::Recipe};
use std::time::Duration;
use tests::Rng;

/// Faults begin after this.
const BEGIN: u64 = 4_000;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// SIGKILL of a trainer.
    TrainerKilled,
    /// An agent's process is gone for a while; its trainers are not.
    AgentKilled,
    /// A machine loses power, and is back later.
    PowerOff,
    /// A coordinator's process is gone for a while.
    CoordinatorKilled,
    /// A worker and all coordinators do not reach each other.
    Cut,
    /// What a worker says, or what it is told, does not arrive.
    CutOneWay,
    /// Messages between a worker and the coordinators are held, then delivered.
    Held,
    /// Messages of a worker take hundreds of milliseconds.
    Slow,
    /// Trainers of two machines do not reach each other.
    PeersCut,
    /// A coordinator does not reach the store.
    StoreCut,
    /// The store answers late by seconds.
    StoreLate,
    /// The store makes writes whose answers are lost.
    StoreUnknown,
    /// A coordinator's wall clock jumps.
    ClockJumps,
    /// A user stops the job and has it go on.
    Stopped,
}

/// Faults of the control plane, of which no trainer may notice anything.
const CONTROL: [Class; 6] = [
    Class::AgentKilled,
    Class::CoordinatorKilled,
    Class::StoreCut,
    Class::StoreLate,
    Class::StoreUnknown,
    Class::ClockJumps,
];
/// Faults of trainers and machines.
const MACHINES: [Class; 4] = [Class::TrainerKilled, Class::PowerOff, Class::PeersCut, Class::AgentKilled];

impl Class {
    /// All of them.
    pub const ALL: [Class; 14] = [
        Class::TrainerKilled,
        Class::AgentKilled,
        Class::PowerOff,
        Class::CoordinatorKilled,
        Class::Cut,
        Class::CutOneWay,
        Class::Held,
        Class::Slow,
        Class::PeersCut,
        Class::StoreCut,
        Class::StoreLate,
        Class::StoreUnknown,
        Class::ClockJumps,
        Class::Stopped,
    ];

    fn possible(self, coordinators: usize, machines: usize) -> bool {
        match self {
            // One coordinator keeps its store beside it; its writes are made or it is gone.
            Class::StoreCut | Class::StoreUnknown => coordinators > 1,
            Class::PeersCut => machines > 1,
            _ => true,
        }
    }

    /// How long it lasts, in milliseconds.
    fn lasts(self, rng: &mut Rng, control_only: bool) -> u64 {
        match self {
            // An agent that is away for longer than its lease is lost with its machine, by design.
            Class::AgentKilled if control_only => rng.between(100, 1_500),
            // Within and beyond what an operation of the collective may take.
            Class::PeersCut => rng.between(500, 20_000),
            Class::TrainerKilled | Class::ClockJumps | Class::Stopped => 0,
            Class::AgentKilled | Class::CoordinatorKilled => rng.between(200, 12_000),
            Class::Held => rng.between(300, 4_000),
            _ => rng.between(1_000, 20_000),
        }
    }
}

/// One fault.
#[derive(Debug, Clone)]
pub struct Fault {
    pub class: Class,
    pub at: Duration,
    pub until: Duration,
    /// Numbers that choose whom it hits.
    pub who: [u64; 2],
}

/// All that a seed makes.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub coordinators: usize,
    pub machines: usize,
    pub slots: u32,
    pub world: WorldSize,
    /// The fewest and the most ranks, the grace in seconds, spares; absent for a job of as many as it was launched with.
    pub elastic: Option<[u64; 4]>,
    pub steps: u64,
    pub every: u64,
    pub step: Duration,
    /// How many failures, and how many in a row without progress.
    pub budget: (u32, u32),
    pub faults: Vec<Fault>,
    /// Only the control plane is disturbed.
    pub control_only: bool,
    /// From here on nothing goes wrong.
    pub calm: Duration,
}

impl Scenario {
    /// The scenario of a seed.
    pub fn of(seed: u64) -> Self {
        let rng = &mut Rng::new(seed, "scenario");
        let coordinators = if rng.percent(60) { 2 } else { 1 };
        let machines = rng.between(1, 4) as usize;
        let slots = rng.between(1, 2) as u32;
        let places = machines as u32 * slots;
        let world = WorldSize(rng.between(1, u64::from(places)) as u32);
        let profile = rng.below(100);
        let control_only = profile < 35;
        let classes: Vec<Class> = match profile {
            0..35 => CONTROL.to_vec(),
            35..55 => MACHINES.to_vec(),
            _ => Class::ALL.to_vec(),
        };
        let classes: Vec<Class> = classes.into_iter().filter(|class| class.possible(coordinators, machines)).collect();
        let window = rng.between(15_000, 45_000);
        let count = rng.between(2, 9);
        let mut faults: Vec<Fault> = (0..count)
            .map(|_| {
                let class = *rng.pick(&classes);
                let at = BEGIN + rng.below(window);
                let lasts = class.lasts(rng, control_only);
                let who = [rng.next(), rng.next()];
                Fault { class, at: Duration::from_millis(at), until: Duration::from_millis(at + lasts), who }
            })
            .collect();
        faults.sort_by_key(|fault| fault.at);
        let calm = faults.iter().map(|fault| fault.until).max().unwrap_or_default() + Duration::from_secs(1);
        let (steps, every, step) = (rng.between(20, 60), rng.between(3, 12), rng.millis(200, 700));
        let budget = if rng.percent(15) { (rng.between(0, 3) as u32, 1) } else { (60, 30) };
        let most = rng.between(u64::from(world.0), u64::from(places).max(u64::from(world.0)));
        let elastic = [rng.between(1, u64::from(world.0)), most, rng.below(12), rng.below(2)];
        Self {
            coordinators,
            machines,
            slots,
            world,
            elastic: rng.percent(45).then_some(elastic),
            steps,
            every,
            step,
            budget,
            faults,
            control_only,
            calm,
        }
    }

    /// An hour of training on three machines in which something goes wrong every 20 s, and nothing for long.
    pub fn hour(seed: u64) -> Self {
        let rng = &mut Rng::new(seed, "hour");
        let classes =
            [Class::TrainerKilled, Class::AgentKilled, Class::Held, Class::CoordinatorKilled, Class::StoreUnknown];
        let faults = (1..180).map(|number| {
            let (class, at) = (*rng.pick(&classes), Duration::from_secs(20 * number));
            Fault { class, at, until: at + rng.millis(0, 3000), who: [rng.next(), rng.next()] }
        });
        let faults: Vec<Fault> = faults.collect();
        Self {
            coordinators: 2,
            machines: 3,
            slots: 1,
            world: WorldSize(3),
            elastic: None,
            steps: 1500,
            every: 25,
            step: Duration::from_secs(2),
            budget: (10_000, 10_000),
            calm: faults.last().map(|fault| fault.until).unwrap_or_default(),
            faults,
            control_only: false,
        }
    }

    /// What is trained.
    pub fn recipe(&self, output: &str) -> Recipe {
        let recipe = serde_json::json!({
            "name": "demo", "seed": 7, "output": output, "data": {},
            "model": {"text": null, "vision": null, "adapter": null},
            "stages": [
                {"kind": "embed", "data": ["d"], "batch_tokens": 64},
                {"kind": "clip", "data": ["d"], "global_batch": 8, "chunk": 4, "length": {"steps": self.steps},
                 "precision": "fp32", "augment": {"scale": [0.9, 1.0], "ratio": [0.75, 1.33]},
                 "optimizer": {"learning_rate": 1e-3, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.05,
                               "clip_norm": 1.0, "layer_decay": 1.0},
                 "schedule": {"warmup_steps": 2}, "checkpoint": {"every_steps": self.every, "keep": 2},
                 "logit_scale_init": 2.6592}
            ],
            "elastic": self.elastic.map(|[least, most, grace, spares]| serde_json::json!({
                "min_ranks": least, "max_ranks": most, "grace": {"secs": grace, "nanos": 0}, "spares": spares
            })),
            "faults": {"max_failures": self.budget.0, "max_no_progress": self.budget.1}
        });
        serde_json::from_value(recipe).expect("the recipe of this file is one")
    }
}
