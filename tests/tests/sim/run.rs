//! One seed, from its beginning to its end.

use super::{
    bugs::Bug,
    check::{self, History},
    faults::Nemesis,
    hosts,
    records::Records,
    scenario::{Class, Scenario},
    storage::Storage,
    trace::Trace,
    user,
    world::{Coordinator, Machine, Shared, World},
};
use common::ids::JobId;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tests::Rng;
use turmoil::{Builder, Sim};

/// The step of simulated time.
const TICK: Duration = Duration::from_millis(20);
/// How long messages take.
pub const LATENCY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(30));
/// How soon after the last fault the job must be over: the longest wait of a job (180 s for trainers that do not start), the
/// longest back-off, and the training itself.
const CONVERGES: Duration = Duration::from_secs(420);
/// How soon after its job's end a trainer must be gone: its own lease, and an order that is repeated.
const ORPHANS: Duration = Duration::from_secs(70);

/// How a seed went.
#[derive(Debug)]
pub struct Outcome {
    pub seed: u64,
    /// What was violated, and when.
    pub violation: Option<String>,
    pub virtual_time: Duration,
    /// The digest of everything that happened.
    pub digest: u64,
    pub last: String,
    pub hit: BTreeMap<Class, u64>,
    pub unknowns: u64,
    /// Writes that the fence refused.
    pub fenced: u64,
    pub succeeded: bool,
    pub generations: u64,
}

/// Runs a seed.
pub fn run(seed: u64, bug: Bug, aloud: bool) -> Outcome {
    run_scenario(seed, Scenario::of(seed), bug, aloud, &mut |_| ())
}

/// Runs a scenario with a seed's luck. `look` sees the world at every tick.
pub fn run_scenario(seed: u64, scenario: Scenario, bug: Bug, aloud: bool, look: &mut dyn FnMut(&World)) -> Outcome {
    let scenario = Arc::new(scenario);
    let job: JobId = "demo-1".parse().expect("a name");
    let shared = Shared::new(world(seed, bug, aloud, &scenario, &job));
    let mut sim = network(seed);
    populate(&mut sim, &shared, &scenario, &job);
    let mut nemesis = Nemesis::new(&scenario);
    let end = scenario.calm + CONVERGES;
    let mut over_at = None;
    loop {
        let now = sim.elapsed();
        moment(&shared, now);
        nemesis.act(&mut sim, &shared, &scenario);
        if let Err(error) = sim.step() {
            shared.lock().history.violated(format!("a program ended: {error}"));
        }
        let mut world = shared.lock();
        check::tick(&mut world);
        look(&world);
        if over_at.is_none() && world.history.outcome.is_some() {
            over_at = Some(now);
            check::outcome(&mut world, &job, scenario.steps, scenario.control_only);
        }
        let left = world.living().len();
        if world.history.violation().is_some() || (over_at.is_some() && left == 0) {
            break;
        }
        if over_at.is_some_and(|over| now > over.max(scenario.calm) + ORPHANS) {
            world.history.violated(format!("I4: {left} trainers live on after their job"));
        } else if over_at.is_none() && now > end {
            let state = check::record(&world, &job).map(|state| format!("{:?}", state.life));
            world.history.violated(format!("I7: without faults the job does not end: {state:?}"));
        }
    }
    outcome(seed, sim.elapsed(), &shared.lock(), &nemesis, &job)
}

fn outcome(seed: u64, virtual_time: Duration, world: &World, nemesis: &Nemesis, job: &JobId) -> Outcome {
    let state = check::record(world, job);
    Outcome {
        seed,
        violation: world.history.violation().cloned(),
        virtual_time,
        digest: world.trace.digest(),
        last: world.trace.last(),
        hit: nemesis.hit.clone(),
        unknowns: world.records.unknowns,
        fenced: world.records.fenced,
        succeeded: state.as_ref().is_some_and(|state| matches!(state.life, coordinator::job::Life::Succeeded)),
        generations: state.map_or(0, |state| state.generation.0),
    }
}

fn world(seed: u64, bug: Bug, aloud: bool, scenario: &Scenario, job: &JobId) -> World {
    let worker = |machine: usize| format!("w{machine}").parse().expect("a name");
    let mut history = History::default();
    history.outputs.insert(job.clone(), output().into());
    let takes = if scenario.coordinators > 1 { (1, 20) } else { (0, 8) };
    World {
        now: Duration::ZERO,
        rng: Rng::new(seed, "world"),
        bug,
        trace: Trace::new(aloud),
        machines: (0..scenario.machines).map(|machine| Machine::new(worker(machine))).collect(),
        cuts: Default::default(),
        storage: Storage::default(),
        records: Records::answering_in(takes),
        coordinators: (0..scenario.coordinators).map(|_| Coordinator::default()).collect(),
        history,
        step: scenario.step,
    }
}

fn output() -> &'static str {
    "/shared/demo"
}

fn network(seed: u64) -> Sim<'static> {
    let mut builder = Builder::new();
    builder
        .rng_seed(seed)
        .tick_duration(TICK)
        .simulation_duration(Duration::from_secs(1_000_000))
        .min_message_latency(LATENCY.0)
        .max_message_latency(LATENCY.1)
        .tcp_capacity(4096);
    builder.build()
}

fn populate(sim: &mut Sim<'_>, shared: &Shared, scenario: &Arc<Scenario>, job: &JobId) {
    for who in 0..scenario.coordinators {
        let (shared, scenario) = (shared.clone(), scenario.clone());
        sim.host(hosts::name(who), move || hosts::coordinator(shared.clone(), who, scenario.clone()));
    }
    for machine in 0..scenario.machines {
        let (shared, scenario) = (shared.clone(), scenario.clone());
        sim.host(format!("w{machine}"), move || hosts::agent(shared.clone(), machine, scenario.clone()));
    }
    let (shared, scenario, job) = (shared.clone(), scenario.clone(), job.clone());
    sim.host("user", move || user::user(shared.clone(), scenario.clone(), job.clone(), output().to_owned()));
}

/// What the world does by itself.
fn moment(shared: &Shared, now: Duration) {
    let mut world = shared.lock();
    world.now = now;
    world.expire();
    world.land();
    world.live();
    world.work();
    world.flush();
}
