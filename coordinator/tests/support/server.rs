//! Coordinators as processes of their own, over one etcd.

use common::status::JobStatus;
use proto::v1::{JobRequest, ListRequest, jobs_client::JobsClient};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, Instant},
};
use tokio::process::{Child, Command};
use tonic::{Request, transport::Endpoint};

/// The leader's lease.
pub const LEASE: Duration = Duration::from_secs(4);
/// The longest a test waits for anything else.
const DEADLINE: Duration = Duration::from_secs(60);

/// All coordinators of a test. Dropped, they end.
pub struct Servers {
    folder: tempfile::TempDir,
    list: Vec<(Child, String)>,
}

impl Servers {
    /// Starts so many.
    pub async fn start(store: &str, count: usize) -> Self {
        let mut servers = Self { folder: tempfile::tempdir().unwrap(), list: Vec::new() };
        for at in 0..count {
            let log = std::fs::File::create(servers.log_file(at)).unwrap();
            let lease = LEASE.as_secs().to_string();
            let mut command = servers.command(&["serve", "--listen", "127.0.0.1:0", "--log-json", "--store", store]);
            let child = command.args(["--leader-lease-s", &lease]).stderr(log).spawn().unwrap();
            servers.list.push((child, String::new()));
            servers.until("its address", || servers.up(at).is_some()).await;
            servers.list[at].1 = servers.up(at).unwrap();
        }
        servers
    }

    fn up(&self, at: usize) -> Option<String> {
        let log = self.log(at);
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let mut up = lines.filter(|line| line["fields"]["message"] == "the coordinator is up");
        Some(up.next()?["fields"]["url"].as_str().unwrap().to_owned())
    }

    fn log_file(&self, at: usize) -> PathBuf {
        self.folder.path().join(format!("{at}.log"))
    }

    /// What one has logged.
    pub fn log(&self, at: usize) -> String {
        std::fs::read_to_string(self.log_file(at)).unwrap()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn url(&self, at: usize) -> &str {
        &self.list[at].1
    }

    /// Several, with commas between.
    pub fn urls(&self, at: &[usize]) -> String {
        at.iter().map(|at| self.url(*at)).collect::<Vec<_>>().join(",")
    }

    pub fn signal(&mut self, at: usize, signal: Signal) {
        let pid = self.list[at].0.id().unwrap();
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
    }

    /// Stops one in its tracks, and waits until none of its threads runs: what is sent from here on it has not seen.
    pub async fn pause(&mut self, at: usize) {
        self.signal(at, Signal::STOP);
        let pid = self.list[at].0.id().unwrap();
        let stopped = || {
            std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|thread| {
                let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap_or_default();
                stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T'))
            })
        };
        self.until("it is stopped", stopped).await;
    }

    /// Waits until something is so.
    pub async fn until(&self, what: &str, check: impl Fn() -> bool) {
        let began = Instant::now();
        while !check() {
            let logs: Vec<String> = (0..self.list.len()).map(|at| self.log(at)).collect();
            assert!(began.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}\n{}", logs.join("\n"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The one that answers as a leader.
    pub async fn who_leads(&self) -> Option<usize> {
        for (at, (_, url)) in self.list.iter().enumerate() {
            let Ok(channel) = Endpoint::from_shared(url.clone()).unwrap().connect().await else { continue };
            let list = JobsClient::new(channel);
            let asked = async move { { list }.list(ListRequest {}).await };
            if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(300), asked).await {
                return Some(at);
            }
        }
        None
    }

    /// Waits until one leads; which, and how long that took.
    pub async fn leader(&self, within: Duration) -> (usize, Duration) {
        let began = Instant::now();
        loop {
            if let Some(at) = self.who_leads().await {
                return (at, began.elapsed());
            }
            let logs: Vec<String> = (0..self.list.len()).map(|at| self.log(at)).collect();
            assert!(began.elapsed() < within, "nobody leads within {within:?}\n{}", logs.join("\n"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llm2clip"));
        command.args(arguments).env_remove("LLM2CLIP_COORDINATOR").env("XDG_STATE_HOME", self.folder.path());
        command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Starts a verb against these coordinators.
    pub fn spawn(&self, urls: &str, arguments: &[&str]) -> Child {
        let mut command = self.command(&["--coordinator", urls]);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs a verb to its end.
    pub async fn run(&self, urls: &str, arguments: &[&str]) -> Output {
        let ended = tokio::time::timeout(DEADLINE, self.spawn(urls, arguments).wait_with_output()).await;
        ended.unwrap_or_else(|_| panic!("{arguments:?} did not end")).unwrap()
    }

    /// Launches the demo's recipe through one of them; the job's id.
    pub async fn launch(&self, at: usize) -> String {
        let output = format!("output={:?}", self.folder.path().join("output"));
        let arguments = ["launch", "configs/demo-quick.toml", "--ranks", "2", "--set", &output, "-o", "json"];
        let launched = self.run(self.url(at), &arguments).await;
        let document: serde_json::Value = serde_json::from_slice(&launched.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&launched.stderr)));
        document["job"].as_str().unwrap().to_owned()
    }

    /// Waits until a job is as asked for, as one of them says.
    pub async fn wait_for(&self, at: usize, job: &str, until: impl Fn(&JobStatus) -> bool) -> JobStatus {
        let began = Instant::now();
        loop {
            let answer = async {
                let mut request = Request::new(JobRequest { job: job.to_owned() });
                request.set_timeout(Duration::from_secs(2));
                JobsClient::connect(self.url(at).to_owned()).await.ok()?.status(request).await.ok()
            };
            let status =
                answer.await.map(|reply| serde_json::from_str::<JobStatus>(&reply.into_inner().status).unwrap());
            match status {
                Some(status) if until(&status) => return status,
                status => assert!(began.elapsed() < DEADLINE, "{job} is {status:?}\n{}", self.log(at)),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
