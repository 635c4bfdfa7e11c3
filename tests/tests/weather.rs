//! Networks that are slow and lose packets, that come and go, and that carry one way only: nobody counts as lost who lives, and no
//! rank is started again. Three machines in network namespaces, some of their cables in user space.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::{Duration, Instant};
use tests::{Cable, Job, Machines, Recipe, Setting, Weather};

/// No checkpoint before the last step: whatever goes on comes from memory. Small, as a slow network carries its gradients.
fn recipe(steps: u64) -> Recipe {
    Recipe { steps, global_batch: 12, chunk: 4, every_steps: 10_000, max_failures: 5, ..Recipe::default() }
}

fn launch(machines: &Machines<'_>, job: &Job) -> String {
    let id = machines.launch();
    job.wait_for_step(10);
    id
}

/// The training goes on for so long, whatever the network does; returns the steps that it took.
fn goes_on(job: &Job, time: Duration) -> u64 {
    let began = Instant::now();
    let first = job.steps().last().unwrap().step;
    let mut reached = first;
    while began.elapsed() < time {
        job.wait_for_step(reached + 1);
        reached = job.steps().last().unwrap().step;
    }
    reached - first
}

/// Waits for the job's end, which is a good one, and in which nobody was lost nor started again.
fn finish_unharmed(machines: &Machines<'_>, job: &Job, id: &str) {
    let last = job.steps().last().unwrap().generation;
    assert_eq!(last, job.steps()[0].generation, "somebody was started again");
    let began = Instant::now();
    let status = loop {
        let status = machines.json(&["status", id]);
        if status["phase"]["phase"] == "succeeded" {
            break status;
        }
        assert!(began.elapsed() < Duration::from_secs(180), "{status}");
        machines.llm2clip(&["events", id, "--follow"]);
    };
    assert_eq!(status["failures"], serde_json::json!([]), "nothing was lost: {status}");
    assert_eq!(status["generation"], last, "and nothing started again");
}

#[test]
#[ignore = "takes minutes: make long"]
fn half_a_second_and_a_packet_of_twenty_on_the_way_to_coordinators_and_etcd_cost_nothing() {
    let recipe = recipe(300);
    let job = Job::new(&recipe);
    let cables = [0, 1, 2].map(|machine| (machine, Cable::Control));
    let Some(mut machines) = Machines::start_in(&job, Setting { weather: &cables, far: true }) else { return };
    let id = launch(&machines, &job);
    let far = Weather::both_ways(Duration::from_millis(500), 0.05);
    machines.weather(2, Cable::Control, &far);
    let one = goes_on(&job, Duration::from_secs(15));
    // A packet passes two cables now.
    let half = Weather::both_ways(Duration::from_millis(250), 0.025);
    for machine in 0..3 {
        machines.weather(machine, Cable::Control, &half);
    }
    let all = goes_on(&job, Duration::from_secs(30));
    eprintln!("{one} steps in 15 s of such weather on one machine's cable, {all} in 30 s on all");
    job.wait_for_step(recipe.steps);
    finish_unharmed(&machines, &job, &id);
    job.check_undisturbed(&recipe, 3, 0.0, 0);
}

#[test]
#[ignore = "takes minutes: make long"]
fn the_same_between_trainers_makes_them_slow_and_costs_no_rank() {
    let recipe = recipe(24);
    let job = Job::new(&recipe);
    let cable = (1, Cable::Data);
    let Some(mut machines) = Machines::start_in(&job, Setting { weather: &[cable], far: false }) else { return };
    let id = launch(&machines, &job);
    machines.weather(cable.0, cable.1, &Weather::both_ways(Duration::from_millis(250), 0.05));
    let reached = job.steps().last().unwrap().step;
    let began = Instant::now();
    job.wait_for_step(reached + 8);
    eprintln!("a step takes {:.1} s", began.elapsed().as_secs_f64() / 8.0);
    machines.weather(cable.0, cable.1, &Weather::default());
    job.wait_for_step(recipe.steps);
    finish_unharmed(&machines, &job, &id);
    job.check_undisturbed(&recipe, 3, 0.0, 0);
}

#[test]
fn cables_that_come_and_go_or_carry_one_way_only_to_the_coordinators_cost_nothing() {
    let recipe = recipe(400);
    let job = Job::new(&recipe);
    let cable = (2, Cable::Control);
    let Some(mut machines) = Machines::start_in(&job, Setting { weather: &[cable], far: false }) else { return };
    let id = launch(&machines, &job);
    // Once a second, for 20 s each: to the coordinators, then to the other trainers.
    for cable in [Cable::Control, Cable::Data] {
        let mut steps = 0;
        for change in 0..40 {
            machines.plug(2, cable, change % 2 == 1);
            let began = Instant::now();
            let reached = job.steps().last().unwrap().step;
            while let Some(left) = Duration::from_millis(500).checked_sub(began.elapsed()) {
                std::thread::park_timeout(left);
            }
            steps += job.steps().last().unwrap().step - reached;
        }
        eprintln!("{steps} steps while the {cable:?} cable of a machine came and went for 20 s");
    }
    // Longer than a worker's lease.
    for lost in [(1.0, 0.0), (0.0, 1.0)] {
        machines.weather(cable.0, cable.1, &Weather { lost, ..Weather::default() });
        let steps = goes_on(&job, Duration::from_secs(9));
        eprintln!("{steps} steps in 9 s while the shares {lost:?} from and to a machine's control cable were lost");
        machines.weather(cable.0, cable.1, &Weather::default());
        goes_on(&job, Duration::from_secs(3));
    }
    job.wait_for_step(recipe.steps);
    finish_unharmed(&machines, &job, &id);
    job.check_undisturbed(&recipe, 3, 0.0, 0);
}
