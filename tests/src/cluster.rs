//! A cluster of the real daemons on loopback: a coordinator, or several over one etcd, that can be killed and started again, and
//! workers.

use crate::{Job, family};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// The longest a wait for ranks lasts.
const DEADLINE: Duration = Duration::from_secs(120);

/// Sends a signal to a process, which may have ended.
pub fn signal(pid: i32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

/// Daemons that end with it.
pub struct Cluster<'a> {
    job: &'a Job,
    coordinators: Vec<Coordinator>,
    workers: BTreeMap<String, Child>,
}

impl<'a> Cluster<'a> {
    /// Starts a coordinator on a free port. Its state and the workers' lie beside the job.
    pub fn start(job: &'a Job) -> Self {
        let state = job.folder().join("coordinator").to_str().unwrap().to_owned();
        let coordinator = Coordinator::start(job, 0, vec!["--state".to_owned(), state]);
        Self { job, coordinators: vec![coordinator], workers: BTreeMap::new() }
    }

    /// Starts so many over one etcd, whose leader's lease is 3 s. The first one leads at first.
    pub fn start_shared(job: &'a Job, store: &str, count: usize) -> Self {
        let arguments = ["--store", store, "--leader-lease-s", "3"].map(str::to_owned).to_vec();
        let mut cluster = Self { job, coordinators: Vec::new(), workers: BTreeMap::new() };
        for number in 0..count {
            cluster.coordinators.push(Coordinator::start(job, number, arguments.clone()));
            // The next one has a leader to stand by then.
            assert!(cluster.llm2clip(&["ps"]).status.success(), "nobody leads");
        }
        cluster
    }

    /// Launches the job with so many ranks when all workers are there: an elastic one would begin with those who are. Its id.
    pub fn launch(&self, ranks: u32) -> String {
        self.wait_for_sessions();
        let launched = self.json(&["launch", self.job.recipe().to_str().unwrap(), "--ranks", &ranks.to_string()]);
        launched["job"].as_str().unwrap().to_owned()
    }

    /// Waits for the job's end, which is a good one.
    pub fn finish(&self, id: &str) {
        let events = self.llm2clip(&["events", id, "--follow"]);
        let status = self.json(&["status", id]);
        assert_eq!(status["phase"]["phase"], "succeeded", "{status}\n{}", String::from_utf8_lossy(&events.stdout));
    }

    /// Where all coordinators listen.
    pub fn urls(&self) -> String {
        self.coordinators.iter().map(|coordinator| coordinator.url.as_str()).collect::<Vec<_>>().join(",")
    }

    /// Adds a worker with one trainer on one core, over the state it left if there was one before.
    pub fn worker(&mut self, id: &str) {
        self.worker_with(id, &[], "");
    }

    /// The same with more arguments, which may give it more trainers, and with faults on purpose in its trainers.
    pub fn worker_with(&mut self, id: &str, arguments: &[&str], failpoints: &str) {
        let mut command = self.job.around(Command::new(Job::binary("llm2clip-worker")));
        command.args(["--coordinator", &self.urls(), "--id", id, "--cores", "1", "--lease-s", "60"]);
        if !arguments.contains(&"--trainers") {
            command.args(["--trainers", "1"]);
        }
        command.arg("--state").arg(self.job.folder().join(format!("worker-{id}"))).args(arguments);
        if !failpoints.is_empty() {
            command.env("LLM2CLIP_FAILPOINTS", failpoints);
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.workers.insert(id.to_owned(), child);
    }

    /// The processes of a worker's machine: the daemon first, then all that it started.
    pub fn machine(&self, id: &str) -> Vec<i32> {
        family(i32::try_from(self.workers[id].id()).unwrap())
    }

    /// Kills a worker and its trainers by signal 9.
    pub fn lose_machine(&mut self, id: &str) {
        self.machine(id).into_iter().for_each(|pid| signal(pid, Signal::KILL));
        self.workers.remove(id).unwrap().wait().unwrap();
    }

    /// Kills a worker's daemon by signal 9, and none of its trainers.
    pub fn lose_daemon(&mut self, id: &str) {
        let mut daemon = self.workers.remove(id).unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// The trainers' processes of a job, by rank.
    pub fn trainers(&self, id: &str) -> Vec<i32> {
        let status = self.json(&["status", id]);
        let ranks = status["ranks"].as_array().cloned().unwrap_or_default();
        ranks.iter().map(|rank| i32::try_from(rank["pid"].as_i64().unwrap()).unwrap()).collect()
    }

    /// Waits until a job runs with these workers' ranks, in this order; returns the newest step then.
    pub fn wait_for_ranks(&self, id: &str, workers: &[&str]) -> u64 {
        let ranks = || {
            let status = self.json(&["status", id]);
            let ranks = status["ranks"].as_array().cloned().unwrap_or_default();
            let found: Vec<String> = ranks.iter().map(|rank| rank["worker"].as_str().unwrap().to_owned()).collect();
            (found == workers && status["phase"]["phase"] == "running").then_some(())
        };
        let what = format!("ranks on {workers:?}");
        crate::wait_for(&self.job.output().join("clip"), &what, DEADLINE, ranks);
        self.job.steps().last().map_or(0, |step| step.step)
    }

    /// Waits until all workers have sessions.
    pub fn wait_for_sessions(&self) {
        self.workers.keys().for_each(|id| self.wait_for_session(id));
    }

    /// Waits until a worker has a session.
    pub fn wait_for_session(&self, id: &str) {
        self.wait_for_sessions_end(id, false);
    }

    /// Waits until the coordinator knows that a worker has none.
    pub fn wait_for_no_session(&self, id: &str) {
        self.wait_for_sessions_end(id, true);
    }

    fn wait_for_sessions_end(&self, id: &str, end: bool) {
        let connected = || {
            let workers = self.json(&["workers"]);
            let workers = workers["workers"].as_array().cloned().unwrap_or_default();
            workers.iter().any(|worker| worker["worker"] == id && worker["connected"] == true)
        };
        let what = format!("worker {id} {} a session", if end { "without" } else { "with" });
        assert!(until(DEADLINE, || connected() != end), "no {what} within {DEADLINE:?}");
    }

    /// Waits until an event of a job says this.
    pub fn wait_for_event(&self, id: &str, text: &str) {
        crate::wait_for_line(self.job.command(&["--coordinator", &self.urls(), "events", id, "--follow"]), text);
    }

    /// Waits for the end of a worker's daemon; its exit code.
    pub fn wait_for_worker(&mut self, id: &str) -> Option<i32> {
        self.workers.get_mut(id).unwrap().wait().unwrap().code()
    }

    /// Kills the coordinator, or the first of several, by signal 9.
    pub fn kill_coordinator(&mut self) {
        self.kill_coordinator_number(0);
    }

    /// Kills one of several.
    pub fn kill_coordinator_number(&mut self, number: usize) {
        self.coordinators[number].end();
    }

    /// Starts it again where it was, over what it has stored.
    pub fn restart_coordinator(&mut self) {
        self.restart_armed(0, "");
    }

    /// Starts one of several again, with these faults of its store: it may be gone again by now.
    pub fn restart_armed(&mut self, number: usize, store_faults: &str) {
        self.coordinators[number].spawn(self.job, store_faults);
    }

    /// Waits until a coordinator's process is gone: which one. Absent when none is within this time.
    pub fn wait_for_death(&mut self, within: Duration) -> Option<usize> {
        let mut dead = None;
        until(within, || {
            dead = self.coordinators.iter_mut().position(Coordinator::is_dead);
            dead.is_some()
        });
        dead
    }

    /// Runs a verb against the coordinator, or the one of several that leads.
    pub fn llm2clip(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Such a verb, to be started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.job.command(&["--coordinator", &self.urls()]);
        command.args(arguments);
        command
    }

    /// What `-o json` of a verb says.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.llm2clip(&[arguments, &["-o", "json"]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}\n{said}"))
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        self.coordinators.iter_mut().for_each(Coordinator::end);
        for child in self.workers.values_mut() {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A coordinator's process and what it is started with.
struct Coordinator {
    url: String,
    arguments: Vec<String>,
    log: PathBuf,
    /// Absent while it was killed.
    child: Option<Child>,
}

impl Coordinator {
    fn start(job: &Job, number: usize, arguments: Vec<String>) -> Self {
        let folder = job.folder().join("coordinators");
        std::fs::create_dir_all(&folder).unwrap();
        let log = folder.join(format!("{number}.log"));
        let mut coordinator = Self { url: "http://127.0.0.1:0".to_owned(), arguments, log, child: None };
        coordinator.spawn(job, "");
        coordinator.url = coordinator.is_up().last().cloned().expect("it says where it listens");
        coordinator
    }

    /// Starts it, and waits until it is up or gone.
    fn spawn(&mut self, job: &Job, store_faults: &str) {
        let before = self.is_up().len();
        let listen = self.url.strip_prefix("http://").unwrap();
        let mut command = job.command(&["serve", "--listen", listen, "--log-json"]);
        command.args(&self.arguments).env("LLM2CLIP_STORE_FAULTS", store_faults);
        let log = std::fs::File::options().create(true).append(true).open(&self.log).unwrap();
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        let up = until(DEADLINE, || self.is_up().len() > before || self.is_dead());
        assert!(up, "the coordinator did not begin: {}", std::fs::read_to_string(&self.log).unwrap());
    }

    /// Where it listened, each time that it came up.
    fn is_up(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let up = lines.filter(|line| line["fields"]["message"] == "the coordinator is up");
        up.map(|line| line["fields"]["url"].as_str().unwrap().to_owned()).collect()
    }

    fn is_dead(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits until something is so that no event tells of; whether it was within this time.
pub fn until(within: Duration, mut check: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    loop {
        if check() {
            return true;
        }
        if began.elapsed() > within {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
}
