//! The daemons as services: what they tell the service manager, and how they are set up by a file.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use rustix::process::{Pid, Signal, WaitOptions, waitpid};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tests::{Cluster, Job, Manager, Recipe, signal};

/// The longest that a test waits for one thing.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long the manager waits for a sign of life.
const WATCHDOG: Duration = Duration::from_millis(1500);
const ALIVE: &str = "WATCHDOG=1";

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd").join(name)
}

/// A daemon that is killed with the test.
struct Daemon(Child);

impl Daemon {
    fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn id(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    fn signal(&self, which: Signal) {
        signal(self.id(), which);
    }

    /// Stops it; it has stopped then.
    fn stop(&self) {
        self.signal(Signal::STOP);
        waitpid(Pid::from_raw(self.id()), WaitOptions::UNTRACED).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// It lives; stopped, it says nothing; then it lives again; asked to end, it says so and ends well.
fn check_life(manager: &Manager, mut daemon: Daemon) {
    for _ in 0..3 {
        manager.wait_for(ALIVE, WATCHDOG);
    }
    daemon.stop();
    manager.clear();
    assert_eq!(manager.heard(2 * WATCHDOG), None, "it was stopped");
    daemon.signal(Signal::CONT);
    manager.wait_for(ALIVE, WATCHDOG);
    daemon.signal(Signal::TERM);
    manager.wait_for("STOPPING=1", WATCHDOG);
    assert_eq!(daemon.0.wait().unwrap().code(), Some(0));
}

#[test]
fn a_coordinator_is_ready_when_its_api_answers_and_lives_as_long_as_its_loop() {
    let job = Job::new(&Recipe::default());
    let manager = Manager::new(job.folder(), "notify");
    let mut command = job.command(&["serve", "--listen", "127.0.0.1:0", "--config"]);
    command.arg(example("coordinator.toml")).arg("--state").arg(job.folder().join("coordinator"));
    let daemon = Daemon::start(manager.over(&mut command, WATCHDOG));
    let ready = manager.wait_for("READY=1", DEADLINE);
    let url = ready.strip_prefix("READY=1\nSTATUS=leads at ").unwrap().strip_suffix(", the only coordinator").unwrap();
    let answered = job.llm2clip(&["workers", "--coordinator", url]);
    assert!(answered.status.success(), "{}", String::from_utf8_lossy(&answered.stderr));
    check_life(&manager, daemon);
}

#[test]
fn a_worker_is_ready_without_a_coordinator_and_says_how_it_stands() {
    let job = Job::new(&Recipe::default());
    let (alone, with) = (Manager::new(job.folder(), "alone"), Manager::new(job.folder(), "with"));
    let worker = |name: &str, coordinator: &str| {
        let mut command = job.around(Command::new(Job::binary("llm2clip-worker")));
        command.arg("--config").arg(example("worker.toml")).args(["--id", name, "--coordinator", coordinator]);
        command.arg("--state").arg(job.folder().join(name));
        command
    };
    let daemon = Daemon::start(alone.over(&mut worker("w1", "http://127.0.0.1:1"), WATCHDOG));
    assert_eq!(alone.wait_for("READY=1", DEADLINE), "READY=1\nSTATUS=no session with a coordinator yet; 0 trainers");
    let told = alone.wait_for("STATUS=no session: cannot reach the coordinator", DEADLINE);
    assert!(told.ends_with("; 0 trainers"), "{told}");
    check_life(&alone, daemon);

    let mut cluster = Cluster::start(&job);
    let url = cluster.urls();
    let _daemon = Daemon::start(with.over(&mut worker("w2", &url), WATCHDOG));
    with.wait_for("READY=1", DEADLINE);
    assert_eq!(with.wait_for("STATUS=connected", DEADLINE), format!("STATUS=connected to {url}; 0 trainers"));
    cluster.kill_coordinator();
    with.wait_for("STATUS=no session: ", DEADLINE);
}

#[test]
fn a_worker_whose_loop_is_stuck_in_storage_gives_no_sign_of_life() {
    let job = Job::new(&Recipe::default());
    let manager = Manager::new(job.folder(), "notify");
    let cluster = Cluster::start(&job);
    // The log that the worker opens for the trainer: a pipe, of which nobody reads the other end.
    let logs = job.output().join("logs");
    fs::create_dir_all(&logs).unwrap();
    let log = logs.join("trainer-w-0-gen-00001.log");
    assert!(Command::new("mkfifo").arg(&log).status().unwrap().success());
    let mut command = job.around(Command::new(Job::binary("llm2clip-worker")));
    command.args(["--coordinator", &cluster.urls(), "--id", "w", "--trainers", "1", "--cores", "1", "--state"]);
    command.arg(job.folder().join("worker"));
    let daemon = Daemon::start(manager.over(&mut command, WATCHDOG));
    manager.wait_for("STATUS=connected", DEADLINE);
    manager.wait_for(ALIVE, WATCHDOG);
    let launched = cluster.llm2clip(&["launch", job.recipe().to_str().unwrap(), "--ranks", "1"]);
    assert!(launched.status.success(), "{}", String::from_utf8_lossy(&launched.stderr));
    // Signs of life end when the order has come.
    while manager.heard(2 * WATCHDOG).is_some() {}
    let mut reader = fs::File::options().read(true).open(&log).unwrap();
    // The trainer's output has somewhere to go until it is ended with its worker.
    std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    manager.wait_for(&format!("STATUS=connected to {}; 1 trainer", &cluster.urls()), DEADLINE);
    manager.wait_for(ALIVE, WATCHDOG);
    let family = tests::family(daemon.id());
    family.into_iter().for_each(|pid| signal(pid, Signal::KILL));
}

#[test]
fn settings_that_cannot_be_are_told_with_file_line_and_the_nearest_key() {
    let job = Job::new(&Recipe::default());
    let file = job.folder().join("settings.toml");
    let check = |program: &str, text: &str, expected: &str| {
        fs::write(&file, text).unwrap();
        let mut command = job.around(Command::new(Job::binary(program)));
        command.args(if program == "llm2clip" { &["serve"][..] } else { &[] }).arg("--config").arg(&file);
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.trim_end()), (Some(2), format!("error: {expected}").as_str()));
    };
    let place = file.display();
    let wrong = |line: u32, key: &str, near: &str| {
        format!("{place}:{line}: `{key}` is no key of these settings; did you mean `{near}`?")
    };
    check("llm2clip", "state = '/s'\nadvertize = 'http://a:1'", &wrong(2, "advertize", "advertise"));
    check("llm2clip", "\nlisten = 7070", &format!("{place}:2: `listen` must be a string, not an integer"));
    check("llm2clip-worker", "id = 'a'\ntrainer = 2", &wrong(2, "trainer", "trainers"));
    check("llm2clip-worker", "trainers = '2'", &format!("{place}:1: `trainers` must be an integer, not a string"));
}
