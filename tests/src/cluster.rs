//! A cluster of the real daemons on loopback: a coordinator that can be killed and started again, and workers.

use crate::{Job, family};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, ChildStderr, Command, Output, Stdio},
    time::Duration,
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
    /// Where the coordinator listens, from its first start on.
    url: String,
    coordinator: Option<Coordinator>,
    workers: BTreeMap<String, Child>,
}

struct Coordinator {
    child: Child,
    /// Kept open: its log goes there.
    _stderr: BufReader<ChildStderr>,
}

impl<'a> Cluster<'a> {
    /// Starts a coordinator on a free port. Its state and the workers' lie beside the job.
    pub fn start(job: &'a Job) -> Self {
        let (coordinator, url) = serve(job, "127.0.0.1:0");
        Self { job, url, coordinator: Some(coordinator), workers: BTreeMap::new() }
    }

    /// Where its coordinator answers.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Adds a worker with one trainer on one core.
    pub fn worker(&mut self, id: &str) {
        self.worker_with(id, &[], "");
    }

    /// The same with more arguments, and with faults on purpose in its trainers.
    pub fn worker_with(&mut self, id: &str, arguments: &[&str], failpoints: &str) {
        let mut command = self.job.around(Command::new(Job::binary("llm2clip-worker")));
        command.args(["--coordinator", &self.url, "--id", id, "--trainers", "1", "--cores", "1", "--lease-s", "60"]);
        command.arg("--state").arg(self.job.folder().join(format!("worker-{id}"))).args(arguments);
        command.env("LLM2CLIP_FAILPOINTS", failpoints);
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
        let began = std::time::Instant::now();
        let connected = || {
            let workers = self.json(&["workers"]);
            let workers = workers["workers"].as_array().cloned().unwrap_or_default();
            workers.iter().any(|worker| worker["worker"] == id && worker["connected"] == true)
        };
        while !connected() {
            assert!(began.elapsed() < DEADLINE, "worker {id} has no session within {DEADLINE:?}");
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }

    /// Waits until an event of a job says this.
    pub fn wait_for_event(&self, id: &str, text: &str) {
        crate::wait_for_line(self.job.command(&["--coordinator", &self.url, "events", id, "--follow"]), text);
    }

    /// Waits for the end of a worker's daemon; its exit code.
    pub fn wait_for_worker(&mut self, id: &str) -> Option<i32> {
        self.workers.get_mut(id).unwrap().wait().unwrap().code()
    }

    /// Kills the coordinator by signal 9.
    pub fn kill_coordinator(&mut self) {
        let mut coordinator = self.coordinator.take().unwrap();
        coordinator.child.kill().unwrap();
        coordinator.child.wait().unwrap();
    }

    /// Starts it again where it was, over what it has stored.
    pub fn restart_coordinator(&mut self) {
        let address = self.url.strip_prefix("http://").unwrap().to_owned();
        self.coordinator = Some(serve(self.job, &address).0);
    }

    /// Runs a verb against the coordinator.
    pub fn llm2clip(&self, arguments: &[&str]) -> Output {
        let mut all = vec!["--coordinator", self.url.as_str()];
        all.extend(arguments);
        self.job.llm2clip(&all)
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
        for child in
            self.workers.values_mut().chain(self.coordinator.as_mut().map(|coordinator| &mut coordinator.child))
        {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn serve(job: &Job, listen: &str) -> (Coordinator, String) {
    let mut command = job.command(&["serve", "--listen", listen, "--log-json", "--state"]);
    command.arg(job.folder().join("coordinator"));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let url = |line: String| -> Option<String> {
        let line: Value = serde_json::from_str(&line).ok()?;
        (line["fields"]["message"] == "the coordinator is up")
            .then(|| line["fields"]["url"].as_str().unwrap().to_owned())
    };
    let url =
        stderr.by_ref().lines().find_map(|line| url(line.unwrap())).expect("the coordinator says where it listens");
    (Coordinator { child, _stderr: stderr }, url)
}
