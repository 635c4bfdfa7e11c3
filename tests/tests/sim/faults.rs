//! What goes wrong, done to the simulated world when it is due, and undone.

use super::{
    hosts,
    scenario::{Class, Fault, Scenario},
    world::{Shared, World},
};
use std::time::Duration;
use turmoil::Sim;
use worker::supervisor::Exit;

/// Faults that are under way or still to come.
pub struct Nemesis {
    faults: Vec<(Fault, Stage)>,
    /// How many of each class really hit.
    pub hit: std::collections::BTreeMap<Class, u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    ToCome,
    UnderWay,
    Over,
}

impl Nemesis {
    pub fn new(scenario: &Scenario) -> Self {
        let faults = scenario.faults.iter().map(|fault| (fault.clone(), Stage::ToCome)).collect();
        Self { faults, hit: Default::default() }
    }

    /// Does what is due.
    pub fn act(&mut self, sim: &mut Sim<'_>, shared: &Shared, scenario: &Scenario) {
        let now = shared.lock().now;
        for number in 0..self.faults.len() {
            let (fault, stage) = self.faults[number].clone();
            let overlaps = |other: &(Fault, Stage)| other.1 == Stage::UnderWay && other.0.class == fault.class;
            if stage == Stage::ToCome && fault.at <= now {
                if self.faults.iter().any(overlaps) || !begin(&fault, sim, shared, scenario) {
                    self.faults[number].1 = Stage::Over;
                    continue;
                }
                *self.hit.entry(fault.class).or_default() += 1;
                self.faults[number].1 = Stage::UnderWay;
            }
            if self.faults[number].1 == Stage::UnderWay && fault.until <= now {
                end(&fault, sim, shared, scenario);
                self.faults[number].1 = Stage::Over;
            }
        }
        self.quiet(shared, scenario);
    }

    /// Notes which workers nothing keeps from the coordinators.
    fn quiet(&self, shared: &Shared, scenario: &Scenario) {
        let mut world = shared.lock();
        let now = world.now;
        let loud = |class: Class| {
            matches!(class, Class::AgentKilled | Class::PowerOff | Class::Cut | Class::CutOneWay | Class::Held)
        };
        for machine in 0..scenario.machines {
            let hits = |(fault, stage): &(Fault, Stage)| {
                *stage == Stage::UnderWay && loud(fault.class) && of(fault, scenario.machines) == machine
            };
            let here = &mut world.machines[machine];
            if self.faults.iter().any(hits) || here.agent.is_none() {
                here.quiet_since = None;
            } else {
                here.quiet_since.get_or_insert(now);
            }
        }
    }
}

fn of(fault: &Fault, count: usize) -> usize {
    (fault.who[0] % count as u64) as usize
}

fn host(machine: usize) -> String {
    format!("w{machine}")
}

/// Begins a fault; false when there is nothing to hit.
fn begin(fault: &Fault, sim: &mut Sim<'_>, shared: &Shared, scenario: &Scenario) -> bool {
    let machine = of(fault, scenario.machines);
    let who = of(fault, scenario.coordinators);
    let mut world = shared.lock();
    let (class, lasts) = (fault.class, fault.until.saturating_sub(fault.at));
    let told = format!("fault {class:?} on machine {machine} / coordinator {who} for {} ms", lasts.as_millis());
    match class {
        Class::TrainerKilled => return kill(&mut world, fault),
        Class::AgentKilled | Class::PowerOff => {
            if world.machines[machine].agent.is_none() {
                return false;
            }
            if class == Class::PowerOff {
                world.power_off(machine);
            } else {
                world.agent_down(machine);
            }
            drop(world);
            sim.crash(host(machine));
            world = shared.lock();
        }
        Class::CoordinatorKilled => {
            world.coordinators[who].up = false;
            world.forget_undurable(who);
            drop(world);
            sim.crash(format!("c{who}"));
            world = shared.lock();
        }
        Class::Cut => each(scenario, |c| sim.partition(host(machine), c)),
        Class::CutOneWay if fault.who[1].is_multiple_of(2) => {
            each(scenario, |c| sim.partition_oneway(host(machine), c));
        }
        Class::CutOneWay => each(scenario, |c| sim.partition_oneway(c, host(machine))),
        Class::Held => each(scenario, |c| sim.hold(host(machine), c)),
        Class::Slow => {
            each(scenario, |c| sim.set_link_max_message_latency(host(machine), c, Duration::from_millis(600)));
        }
        Class::PeersCut => {
            let other = (machine + 1 + (fault.who[1] % (scenario.machines as u64 - 1)) as usize) % scenario.machines;
            world.cuts.insert((machine.min(other), machine.max(other)));
        }
        Class::StoreCut => {
            world.records.cut.insert(who);
        }
        Class::StoreLate => world.records.late = 20,
        Class::StoreUnknown => world.records.unknown = 20,
        Class::ClockJumps => {
            let hour = 3_600_000;
            world.coordinators[who].wall_offset += if fault.who[1].is_multiple_of(2) { hour } else { -hour };
        }
        Class::Stopped => world.history.stop_wanted = true,
    }
    world.say(&told);
    true
}

fn kill(world: &mut World, fault: &Fault) -> bool {
    let living = world.living();
    if living.is_empty() {
        return false;
    }
    let at = living[(fault.who[0] % living.len() as u64) as usize];
    world.die(at, Exit::Signal(9), "fault TrainerKilled");
    true
}

fn end(fault: &Fault, sim: &mut Sim<'_>, shared: &Shared, scenario: &Scenario) {
    let machine = of(fault, scenario.machines);
    let who = of(fault, scenario.coordinators);
    match fault.class {
        Class::AgentKilled | Class::PowerOff => sim.bounce(host(machine)),
        Class::CoordinatorKilled => sim.bounce(format!("c{who}")),
        Class::Cut | Class::CutOneWay => each(scenario, |c| sim.repair(host(machine), c)),
        Class::Held => each(scenario, |c| sim.release(host(machine), c)),
        Class::Slow => {
            each(scenario, |c| sim.set_link_max_message_latency(host(machine), c, super::run::LATENCY.1));
        }
        Class::PeersCut => shared.lock().cuts.clear(),
        Class::StoreCut => {
            shared.lock().records.cut.remove(&who);
        }
        Class::StoreLate => shared.lock().records.late = 0,
        Class::StoreUnknown => shared.lock().records.unknown = 0,
        Class::TrainerKilled | Class::ClockJumps | Class::Stopped => return,
    }
    shared.lock().say(&format!("fault {:?} is over", fault.class));
}

fn each(scenario: &Scenario, mut act: impl FnMut(String)) {
    (0..scenario.coordinators).for_each(|who| act(hosts::name(who)));
}
