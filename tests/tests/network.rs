//! A cluster of three machines in network namespaces: three etcd members, two coordinators, three workers. Machines lose their power
//! and their cables.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tests::{Cable, Job, Machines, Recipe, losses};

/// No checkpoint before the last step: whatever goes on comes from memory.
fn recipe(steps: u64) -> Recipe {
    let elastic = "min_ranks = 2\nmax_ranks = 3\ngrace_s = 0".to_owned();
    Recipe { steps, every_steps: 10_000, max_failures: 5, elastic, ..Recipe::default() }
}

fn launch(machines: &Machines<'_>, job: &Job) -> String {
    let launched = machines.json(&["launch", job.recipe().to_str().unwrap(), "--ranks", "3"]);
    launched["job"].as_str().unwrap().to_owned()
}

/// Waits for the end; every step was computed once, with the losses of an undisturbed run within `relative` for the first 100 steps,
/// and ten times that afterwards: another number of ranks rounds otherwise, and a training makes more of it with every step.
fn check(machines: &Machines<'_>, job: &Job, recipe: &Recipe, id: &str, relative: f64) {
    let events = machines.llm2clip(&["events", id, "--follow"]);
    let said = String::from_utf8_lossy(&events.stdout).into_owned();
    let status = machines.json(&["status", id]);
    assert_eq!(status["phase"]["phase"], "succeeded", "{status}\n{said}");
    let mut times: BTreeMap<u64, u32> = BTreeMap::new();
    job.steps().iter().for_each(|step| *times.entry(step.step).or_default() += 1);
    assert!(times.values().all(|times| *times == 1), "no step was computed twice: {times:?}\n{said}");
    // Rank 0's last line goes with it.
    assert!(times.len() as u64 + 1 >= recipe.steps, "{} lines of {}\n{said}", times.len(), recipe.steps);
    // Which is not to begin with those who are there first.
    let undisturbed = Job::new(&Recipe { elastic: String::new(), ..recipe.clone() });
    undisturbed.run(3);
    let expected = losses(&undisturbed.steps());
    for (step, loss) in &losses(&job.steps()) {
        let expected = expected[step];
        let relative = if *step <= 100 { relative } else { 10.0 * relative };
        assert!((loss - expected).abs() <= relative * expected.abs(), "step {step}: {loss}, not {expected}\n{said}");
    }
}

#[test]
fn the_machine_of_the_leader_of_rank_0_and_of_an_etcd_member_loses_its_power_and_gets_it_back() {
    let recipe = recipe(120);
    let job = Job::new(&recipe);
    let Some(mut machines) = Machines::start(&job) else { return };
    let id = launch(&machines, &job);
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
    check(&machines, &job, &recipe, &id, 1e-5);
}

#[test]
fn cables_are_pulled_and_put_back() {
    let recipe = recipe(160);
    let job = Job::new(&recipe);
    let Some(machines) = Machines::start(&job) else { return };
    let id = launch(&machines, &job);
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
    check(&machines, &job, &recipe, &id, 0.0);
}
