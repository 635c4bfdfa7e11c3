//! A rank that lives and is at fault: stopped, stuck, out of step, unlike the others, slow, out of memory. It is named, and the
//! training goes on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Child, Output, Stdio},
    time::{Duration, Instant},
};
use tests::{Job, Recipe, losses, wait_for};

/// How long a rank of these trainings may get no further.
const LIMIT_S: u64 = 4;

fn recipe(faults: &str) -> Recipe {
    // No checkpoint before the last step: whatever goes on comes from memory.
    let faults = format!("hang_floor_s = {LIMIT_S}\n{faults}");
    Recipe { steps: 36, every_steps: 1_000, max_failures: 5, faults, ..Recipe::default() }
}

/// Starts the recipe on so many workers with a fault on purpose. Generation 1 is `embed`, generation 2 `clip`.
fn start(job: &Job, workers: u32, failpoints: &str) -> Child {
    let mut command = job.command(&["run", job.recipe().to_str().unwrap(), "--workers", &workers.to_string()]);
    if !failpoints.is_empty() {
        command.env("LLM2CLIP_FAILPOINTS", failpoints);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn end(run: Child, code: i32) -> String {
    let Output { status, stdout, stderr } = run.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert_eq!(status.code(), Some(code), "{said}");
    said
}

/// What is in a text.
fn check_says(text: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(text.contains(part), "{part} is not in: {text}"));
}

/// The first failure of a job.
fn first_failure(job: &Job) -> Value {
    job.json("why")["failures"][0].clone()
}

/// The kept stacks of the first failure, which was a hang.
fn stacks(job: &Job) -> String {
    let cause = first_failure(job)["cause"].clone();
    assert_eq!(cause["kind"], "hung", "{cause}");
    let path = PathBuf::from(cause["stacks"].as_str().unwrap());
    assert_eq!(path.parent().unwrap(), job.output().join("logs"), "beside its log");
    fs::read_to_string(path).unwrap()
}

#[test]
fn a_stopped_trainer_is_seen_within_the_limit_and_no_step_is_lost() {
    let recipe = recipe("");
    let job = Job::new(&recipe);
    let run = job.start(2);
    job.wait_for_step(10);
    let before = job.trainers();
    let stopped = Instant::now();
    kill_process(Pid::from_raw(before[1]).unwrap(), Signal::STOP).unwrap();
    let reached = job.steps().last().unwrap().step;
    job.wait_for_step(reached + 4);
    // The limit, a look a second, its stacks, a new process.
    println!("from SIGSTOP to four new steps: {:.1} s", stopped.elapsed().as_secs_f64());
    assert_eq!(job.trainers()[0], before[0], "its peer is the process that it was");
    end(run, 0);
    job.check_undisturbed(&recipe, 2, 0.0, 0);
    let (_, why) = job.say(&["why"]);
    check_says(
        &why,
        &[
            "rank 1 (worker ",
            "stuck for ",
            "stopped by a signal (state T)",
            "rank 0 waits for it in all_",
            "stacks of its",
        ],
    );
    let (_, events) = job.say(&["events"]);
    check_says(&events, &["stuck", "rank 1 on ", "in memory"]);
    let failure = first_failure(&job);
    // What it had is learned: more than the floor where steps take long.
    let [quiet, limit] = ["quiet_s", "limit_s"].map(|key| failure["cause"][key].as_u64().unwrap());
    assert!(limit >= LIMIT_S && (limit..=limit + 3).contains(&quiet), "{quiet} s of {limit} s");
    check_says(&stacks(&job), &["== thread ", "State:\tT (stopped)", "syscall: "]);
}

#[test]
fn a_deadlock_is_named_with_the_step_and_the_operation_that_its_peers_wait_in() {
    let recipe = recipe("");
    let job = Job::new(&recipe);
    end(start(&job, 2, "clip.step=hang@20/1/2"), 0);
    job.check_undisturbed(&recipe, 2, 0.0, 0);
    let (_, why) = job.say(&["why"]);
    check_says(
        &why,
        &["rank 1 (worker ", " in step 20 while computing", "it waits for no peer", "rank 0 waits for it in all_"],
    );
    check_says(&stacks(&job), &["== thread ", "(llm2clip-trai"]);
}

#[test]
fn a_rank_that_leaves_an_operation_out_is_seen_at_once() {
    let job = Job::new(&Recipe { max_failures: 0, ..recipe("") });
    let began = Instant::now();
    end(start(&job, 2, "collective=skip@40/1/2"), 1);
    assert!(began.elapsed() < Duration::from_secs(90), "{:?}", began.elapsed());
    let (_, why) = job.say(&["why"]);
    check_says(&why, &["rank ", " disagrees in all_", " number 4"]);
}

#[test]
fn one_replica_of_three_that_differs_is_replaced_by_what_the_others_hold() {
    let recipe = recipe("digest_every_steps = 5");
    let job = Job::new(&recipe);
    end(start(&job, 3, "clip.step=flip@12/1/2"), 0);
    let failure = first_failure(&job);
    let cause = &failure["cause"];
    assert_eq!(
        (cause["kind"].as_str(), &cause["step"], &cause["ranks"]),
        (Some("diverged"), &15.into(), &serde_json::json!([1]))
    );
    let (_, why) = job.say(&["why"]);
    check_says(&why, &["after step 15 the parameters of rank 1 are not those of the other ranks"]);
    assert_eq!(losses(&job.steps()).len(), 36);
    let (_, events) = job.say(&["events"]);
    // Reports are a little behind: it is 15 that they hold.
    check_says(&events, &["the others keep step 1"]);
    assert!(job.steps().iter().all(|step| step.generation == if step.step <= 15 { 2 } else { 3 }));
    assert_eq!(job.json("why")["failures"].as_array().unwrap().len(), 1, "the replaced one is like the others");
}

#[test]
fn of_two_replicas_that_differ_neither_is_believed_and_the_checkpoint_before_is() {
    let recipe = Recipe { every_steps: 20, ..recipe("digest_every_steps = 10") };
    let job = Job::new(&recipe);
    end(start(&job, 2, "clip.step=flip@24/1/2"), 0);
    assert_eq!(first_failure(&job)["cause"]["kind"], "diverged");
    let (_, why) = job.say(&["why"]);
    check_says(&why, &["after step 30 the ranks' parameters are not the same"]);
    let (_, events) = job.say(&["events"]);
    check_says(&events, &["2 trainers for stage clip from step 20"]);
    let undisturbed = Job::new(&recipe);
    undisturbed.run(2);
    assert_eq!(losses(&job.steps()), losses(&undisturbed.steps()));
}

/// A program in the place of the trainer's that runs `before` and becomes it.
fn wrapper(job: &Job, before: &str) -> PathBuf {
    let path = job.folder().join("trainer.sh");
    let trainer = Job::binary("llm2clip-trainer");
    fs::write(&path, format!("#!/bin/sh\n{before}\nexec '{}' \"$@\"\n", trainer.display())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Runs two ranks of which one runs out of memory at step 12, in what `before` makes of its surroundings.
fn out_of_memory(before: &str) -> (Job, Recipe) {
    // Taking memory may take its time where many share a core; it is not what is looked for here.
    let recipe = Recipe { faults: "hang_floor_s = 120".to_owned(), ..recipe("") };
    let job = Job::new(&recipe);
    let mut command = job.command(&["run", job.recipe().to_str().unwrap(), "--workers", "2"]);
    command.env("LLM2CLIP_FAILPOINTS", "clip.step=hog@12/1/2").env("LLM2CLIP_TRAINER", wrapper(&job, before));
    end(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap(), 0);
    (job, recipe)
}

#[test]
fn an_allocator_that_is_refused_memory_is_told_as_that() {
    let (job, recipe) = out_of_memory("ulimit -v 1800000");
    let cause = first_failure(&job)["cause"].clone();
    assert_eq!(
        (cause["kind"].as_str(), cause["said_by"]["said_by"].as_str()),
        (Some("out-of-memory"), Some("allocator")),
        "{cause}"
    );
    assert!(cause["peak_bytes"].as_u64().unwrap() > 1 << 27, "{cause}");
    let (_, why) = job.say(&["why"]);
    check_says(&why, &["out of memory: DefaultCPUAllocator: can't allocate memory", "Lower the stage's `chunk`"]);
    job.check_undisturbed(&recipe, 2, 0.0, 0);
}

#[test]
fn a_trainer_that_the_kernel_kills_for_its_memory_is_told_as_that() {
    /// Goes with the test.
    struct Group(PathBuf);
    impl Drop for Group {
        fn drop(&mut self) {
            let _ = fs::remove_dir(&self.0);
        }
    }
    let group = Group(PathBuf::from(format!("/sys/fs/cgroup/memory/llm2clip-test-{}", std::process::id())));
    let group = &group.0;
    let limit = group.join("memory.limit_in_bytes");
    if fs::create_dir(group).and_then(|()| fs::write(&limit, "900000000")).is_err() {
        eprintln!("skipped: no control group with a limit of memory can be made here");
        return;
    }
    let before = format!("echo $$ > {}/cgroup.procs", group.display());
    let (job, recipe) = out_of_memory(&before);
    let cause = first_failure(&job)["cause"].clone();
    let said_by = cause["said_by"].clone();
    assert_eq!(
        (cause["kind"].as_str(), said_by["said_by"].as_str()),
        (Some("out-of-memory"), Some("control-group")),
        "{cause}"
    );
    assert_eq!(said_by["group"].as_str(), group.to_str());
    let (_, why) = job.say(&["why"]);
    check_says(&why, &["out of memory: the kernel killed it", "GiB at most, the limit is 0.84 GiB", "`--trainers`"]);
    job.check_undisturbed(&recipe, 2, 0.0, 0);
}

#[test]
#[ignore = "takes a minute: make long"]
fn a_slow_rank_is_named_while_it_is_slow() {
    // Slow beside steps on a machine that others share, too.
    let job = Job::new(&Recipe { steps: 26, ..recipe("") });
    let run = start(&job, 2, "clip.step=slow:3000@8/1/2");
    job.wait_for_step(9);
    let named = || {
        let ranks = job.json("status")["ranks"].as_array().cloned().unwrap_or_default();
        ranks.into_iter().find(|rank| rank["straggles"] == true)
    };
    let rank = wait_for(&job.output().join("clip"), "a straggler", Duration::from_secs(120), named);
    let step = job.steps().last().unwrap().step;
    assert_eq!(rank["rank"], 1, "{rank}");
    assert!(step <= 8 + 50, "named after step {step}");
    end(run, 0);
    let (_, events) = job.say(&["events"]);
    check_says(&events, &["straggler", "rank 1 on "]);
    assert_eq!(events.matches("straggler").count(), 1, "{events}");
}
