//! A trainer is killed in mid-training and its peers live: they keep what they have in memory, it is started again, and no step
//! is lost.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use tests::{Job, Recipe};

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn recipe() -> Recipe {
    // No checkpoint before the last step: whatever goes on comes from memory.
    Recipe { steps: 60, every_steps: 1_000, max_failures: 5, ..Recipe::default() }
}

/// Kills ranks one after the other as soon as they have gone some steps further; returns the job when it has ended well.
fn killed(ranks: &[usize]) -> Job {
    let job = Job::new(&recipe());
    let run = job.start(2);
    for (number, rank) in ranks.iter().enumerate() {
        job.wait_for_step(10 + 12 * number as u64);
        let before = job.trainers();
        kill(before[*rank]);
        let reached = job.steps().last().unwrap().step;
        job.wait_for_step(reached + 4);
        let after = job.trainers();
        assert_ne!(after[*rank], before[*rank], "it was started again");
        assert_eq!(after[1 - rank], before[1 - rank], "its peer is the process that it was");
    }
    let ended = run.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
    job
}

/// It ended well, and nothing was lost but so many lines of rank 0's.
fn check(job: &Job, lost_lines: u64) {
    job.check_undisturbed(&recipe(), 2, 0.0, lost_lines);
    let status = job.json("status");
    assert_eq!(status["phase"]["phase"], "succeeded");
    let (_, events) = job.say(&["events"]);
    assert!(events.contains("in memory"), "{events}");
}

#[test]
fn a_killed_trainer_is_replaced_and_no_step_is_lost() {
    check(&killed(&[1]), 0);
}

#[test]
fn both_ranks_are_killed_one_after_the_other_and_no_step_is_lost() {
    // Rank 0 writes the lines of the metrics: its last one goes with it.
    check(&killed(&[1, 0, 1]), 1);
}

#[test]
fn one_that_is_killed_again_while_it_is_started_again_costs_no_step_either() {
    let job = Job::new(&recipe());
    let run = job.start(2);
    job.wait_for_step(10);
    let mut killed = job.trainers()[1];
    kill(killed);
    // The next process as soon as it is known: it joins its peers, or takes the state from one, or has not come so far.
    for _ in 0..2 {
        let mut looks = (0..1_000).map(|_| job.trainers());
        let next = looks.find_map(|pids| pids.get(1).copied().filter(|pid| *pid != killed));
        let next = next.expect("it is started again");
        kill(next);
        killed = next;
    }
    let ended = run.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
    check(&job, 0);
}
