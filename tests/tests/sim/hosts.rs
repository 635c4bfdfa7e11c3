//! The programs: the coordinator and the agent as they are, around them what the simulation puts in the place of a machine.

use super::{
    bugs::Bug,
    network::{self, Connections, SimNetwork},
    records::SimStore,
    scenario::Scenario,
    world::{At, Shared},
};
use common::{
    daemon::{notify::Manager, shutdown::Shutdown},
    ids::{Generation, Slot},
    status::Inventory,
    time::Timestamp,
};
use coordinator::{
    api,
    election::{Elector, Identity, Seats, Timing},
    runtime::{Answer, Outside, Runtime, RuntimeConfig},
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{interval, sleep},
};
use worker::{
    agent::{self, Config, Surroundings},
    supervisor::{Assignment, End, Exit, Found, Host, Steer, SupervisorError, ipc::Order},
};

/// How long a leader's lease lives.
pub const LEADER_LEASE: Duration = Duration::from_secs(10);
/// When the simulation begins, by an exact wall clock.
const EPOCH: u64 = 1_764_000_000_000;
/// How soon a process that ended is started again.
const RESTART: Duration = Duration::from_secs(1);

/// The wall clock of a coordinator, and shared storage.
#[derive(Debug)]
struct Around {
    shared: Shared,
    who: usize,
}

impl Outside for Around {
    fn wall(&self) -> Timestamp {
        let world = self.shared.lock();
        let exact = EPOCH + u64::try_from(world.now.as_millis()).unwrap_or(u64::MAX);
        Timestamp(exact.saturating_add_signed(world.coordinators[self.who].wall_offset))
    }

    fn read<'a>(&'a self, file: &'a Path) -> Answer<'a, String> {
        let found = self.shared.lock().storage.read(file);
        Box::pin(async move { found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)) })
    }

    fn list<'a>(&'a self, folder: &'a Path) -> Answer<'a, Vec<String>> {
        let names = self.shared.lock().storage.list(folder);
        Box::pin(async move { Ok(names) })
    }

    fn exists<'a>(&'a self, file: &'a Path) -> Answer<'a, bool> {
        let found = self.shared.lock().storage.read(file).is_some();
        Box::pin(async move { Ok(found) })
    }
}

fn settings(shared: &Shared, who: usize, scenario: &Scenario, bug: Bug) -> RuntimeConfig {
    let outside = Arc::new(Around { shared: shared.clone(), who });
    let config = RuntimeConfig { outside, decide: bug.decide(), ..RuntimeConfig::default() };
    // As `serve` has it.
    if scenario.coordinators > 1 { RuntimeConfig { return_within: Duration::from_secs(20), ..config } } else { config }
}

/// A coordinator's process, started again when it ends.
pub async fn coordinator(shared: Shared, who: usize, scenario: Arc<Scenario>) -> turmoil::Result {
    let (bug, here) = (shared.lock().bug, Connections::new());
    loop {
        shared.lock().coordinators[who].up = true;
        let store = SimStore { shared: shared.clone(), who, fence: None };
        let config = settings(&shared, who, &scenario, bug);
        let shutdown = Shutdown::new();
        if scenario.coordinators > 1 {
            let identity = Identity { url: url(who), timing: Timing { ttl: LEADER_LEASE }, runtime: config };
            let (elector, seats) = Elector::new(store, identity);
            tokio::spawn(api::serve_on(network::listen(&here).await?, seats.clone(), shutdown.clone()));
            tokio::spawn(sample(shared.clone(), who, seats));
            elector.run(shutdown.token()).await;
        } else {
            let opened = Runtime::open(store, config).await;
            if let Ok((handle, runtime)) = opened {
                let seats = Seats::always(handle);
                let serving = tokio::spawn(api::serve_on(network::listen(&here).await?, seats, shutdown.clone()));
                let ended = runtime.run(shutdown.token()).await;
                shared.lock().say(&format!("coordinator {who} ends: {ended:?}"));
                serving.abort();
            }
        }
        shutdown.finish(Duration::from_secs(1)).await;
        sleep(RESTART).await;
    }
}

/// Looks again and again whether one who leads may.
async fn sample(shared: Shared, who: usize, seats: Seats) {
    let mut ticks = interval(Duration::from_millis(100));
    loop {
        ticks.tick().await;
        let term = seats.office().ok().and_then(|office| office.term);
        super::check::leads(&mut shared.lock(), who, term);
    }
}

/// A coordinator's host.
pub fn name(who: usize) -> String {
    format!("c{who}")
}

/// Where a coordinator listens.
pub fn url(who: usize) -> String {
    format!("http://{}:{}", name(who), network::PORT)
}

/// The addresses of all coordinators.
pub fn urls(scenario: &Scenario) -> String {
    (0..scenario.coordinators).map(url).collect::<Vec<_>>().join(",")
}

/// An agent's process.
pub async fn agent(shared: Shared, machine: usize, scenario: Arc<Scenario>) -> turmoil::Result {
    let (told, events) = mpsc::channel(256);
    let worker = {
        let mut world = shared.lock();
        world.agent_up(machine, told);
        world.machines[machine].worker.clone()
    };
    let config = Config {
        coordinator: urls(&scenario),
        inventory: Inventory {
            host: worker.to_string(),
            trainers: scenario.slots,
            gpus: Vec::new(),
            cores: 8,
            memory_bytes: 1 << 34,
            version: "simulated".to_owned(),
        },
        worker,
        threads: 1,
        state: "/simulated".into(),
        peer_host: format!("m{machine}"),
        lease: super::trainer::LEASE,
        ranks_per_gpu: 0,
        preempt_grace: None,
    };
    let host = SimHost { shared, machine };
    // A machine is one state folder, and its agents follow each other in time.
    let began = turmoil::sim_elapsed().unwrap_or_default().as_millis();
    let identity = agent::Identity {
        instance: format!("m{machine}"),
        incarnation: began.try_into().expect("a simulation is short"),
    };
    let network = SimNetwork(Connections::new());
    let surroundings = Surroundings { identity, manager: Manager::default(), network, host, events };
    agent::run_in(config, surroundings, std::future::pending()).await?;
    Ok(())
}

/// Where the trainers of a machine run.
struct SimHost {
    shared: Shared,
    machine: usize,
}

impl SimHost {
    fn handle(&self, pid: u32, slot: Slot, log: PathBuf) -> SimHandle {
        SimHandle { shared: self.shared.clone(), at: (self.machine, pid), slot, log }
    }
}

impl Host for SimHost {
    type Handle = SimHandle;

    fn start(&self, assignment: &Assignment) -> Result<SimHandle, SupervisorError> {
        let record = self.shared.lock().start(self.machine, assignment);
        Ok(self.handle(record.pid, record.slot, record.log))
    }

    fn adopt(&self) -> Result<Vec<Found<SimHandle>>, SupervisorError> {
        let found = self.shared.lock().adopt(self.machine);
        let found = found.into_iter().map(|(record, lives)| {
            let (slot, pid) = (record.slot, record.pid);
            let now = if lives {
                Ok(self.handle(pid, slot, record.log.clone()))
            } else {
                Err(End {
                    slot,
                    pid,
                    exit: Exit::Unknown,
                    last_lines: Vec::new(),
                    memory: Default::default(),
                    stacks: None,
                })
            };
            Found { record, now }
        });
        Ok(found.collect())
    }
}

/// The way to a trainer.
struct SimHandle {
    shared: Shared,
    at: At,
    slot: Slot,
    log: PathBuf,
}

impl Steer for SimHandle {
    fn pid(&self) -> u32 {
        self.at.1
    }

    fn log(&self) -> &Path {
        &self.log
    }

    fn order(&self, order: Order) {
        let mut world = self.shared.lock();
        super::check::ordered(&mut world, self.at, &order);
        if let Some(process) = world.process(self.at) {
            process.link.take(order);
        }
    }

    fn remember(&self, generation: Generation, peer: Option<String>) {
        let mut world = self.shared.lock();
        if let Some(record) = world.machines[self.at.0].remembered.get_mut(&self.slot).filter(|r| r.pid == self.at.1) {
            record.generation = generation;
            record.peer = peer;
        }
    }

    fn end(&self, grace: Duration) {
        let mut world = self.shared.lock();
        let (now, takes) = (world.now, world.rng.millis(10, 300));
        super::check::ended_by_order(&mut world, self.at);
        if let Some(process) = world.process(self.at) {
            process.signals.term_at.get_or_insert(now + takes);
            let kill_at = now + grace;
            process.signals.kill_at = Some(process.signals.kill_at.map_or(kill_at, |earlier| earlier.min(kill_at)));
        }
    }

    fn end_stuck(&self) {
        let mut world = self.shared.lock();
        let now = world.now;
        if let Some(process) = world.process(self.at) {
            process.signals.kill_at = Some(now);
        }
    }
}
