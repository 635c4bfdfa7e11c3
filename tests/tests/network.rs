//! A cluster of three machines in network namespaces: three etcd members, two coordinators, three workers. Machines lose their power
//! and their cables.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::{Duration, Instant};
use tests::{Cable, Job, Machines, Recipe};

/// No checkpoint before the last step: whatever goes on comes from memory.
fn recipe(steps: u64) -> Recipe {
    let elastic = "min_ranks = 2\nmax_ranks = 3\ngrace_s = 0".to_owned();
    Recipe { steps, every_steps: 10_000, max_failures: 5, elastic, ..Recipe::default() }
}

#[test]
fn the_machine_of_the_leader_of_rank_0_and_of_an_etcd_member_loses_its_power_and_gets_it_back() {
    let recipe = recipe(100);
    let job = Job::new(&recipe);
    let Some(mut machines) = Machines::start(&job) else { return };
    let id = machines.launch();
    job.wait_for_step(10);
    let leader = machines.leader();
    let reached = job.steps().last().unwrap().step;
    let began = Instant::now();
    machines.power_off(leader);
    job.wait_for_step(reached + 3);
    eprintln!("a new step {:.1} s after the power of machine {leader} went", began.elapsed().as_secs_f64());
    machines.power_on(leader);
    let grown = machines.wait_for_ranks(&id, 3);
    eprintln!("three ranks again {:.1} s after it was back", grown.as_secs_f64());
    machines.finish(&id);
    // Rank 0's last line goes with it.
    job.check_undisturbed(&recipe, 3, 1e-5, 1);
}

#[test]
fn cables_are_pulled_and_put_back() {
    let recipe = recipe(100);
    let job = Job::new(&recipe);
    let Some(machines) = Machines::start(&job) else { return };
    let id = machines.launch();
    job.wait_for_step(10);
    // Only the way to the coordinators, for longer than a worker's lease: training is not stopped.
    machines.plug(2, Cable::Control, false);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(9) {
        let reached = job.steps().last().unwrap().step;
        job.wait_for_step(reached + 1);
    }
    machines.plug(2, Cable::Control, true);
    let reached = job.steps().last().unwrap().step;
    job.wait_for_step(reached + 5);
    let status = machines.json(&["status", &id]);
    assert_eq!(status["failures"], serde_json::json!([]), "nothing was lost: {status}");
    // Only the way to the other trainers: the ranks lose each other, live, and begin again together.
    let reached = job.steps().last().unwrap().step;
    machines.plug(1, Cable::Data, false);
    let apart = Instant::now();
    machines.wait_for_event(&id, "the ranks lost each other");
    machines.plug(1, Cable::Data, true);
    job.wait_for_step(reached + 5);
    eprintln!("a new step {:.1} s after a data cable was pulled until they knew", apart.elapsed().as_secs_f64());
    // The same ranks all the while.
    machines.finish(&id);
    job.check_undisturbed(&recipe, 3, 0.0, 0);
}
