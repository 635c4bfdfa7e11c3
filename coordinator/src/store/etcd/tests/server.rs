//! An etcd of its own for each test: one member or several on ports of loopback, which can be killed, stopped and started again.

use rustix::process::{Pid, Signal, kill_process};
use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long a cluster may take to serve.
const READY: Duration = Duration::from_secs(30);

/// A cluster over empty folders. Dropped, it ends.
pub struct Etcd {
    folder: tempfile::TempDir,
    members: Vec<Member>,
    arguments: Vec<String>,
    tls: bool,
}

struct Member {
    client: u16,
    peer: u16,
    process: Option<Child>,
}

impl Etcd {
    /// Starts so many members and waits until they serve. Absent, with a word why, where there is no etcd.
    pub async fn start(members: usize) -> Option<Self> {
        let etcd = Self::start_with(members, &[])?;
        etcd.ready().await;
        Some(etcd)
    }

    /// One member with a certificate that it signed itself: [`Self::certificate`].
    pub async fn start_with_tls() -> Option<Self> {
        let etcd = Self::start_with(1, &["--auto-tls"])?;
        let certificate = etcd.certificate();
        etcd.wait("its certificate", || certificate.is_file() && etcd.connects(0)).await;
        Some(etcd)
    }

    fn start_with(members: usize, arguments: &[&str]) -> Option<Self> {
        if !binary().is_file() {
            eprintln!("skipped: {} is missing; `make etcd` fetches it, or LLM2CLIP_ETCD names one", binary().display());
            return None;
        }
        let member = |_| Member { client: free_port(), peer: free_port(), process: None };
        let mut etcd = Self {
            folder: tempfile::tempdir().unwrap(),
            members: (0..members).map(member).collect(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            tls: !arguments.is_empty(),
        };
        (0..members).for_each(|at| etcd.spawn(at));
        Some(etcd)
    }

    fn spawn(&mut self, at: usize) {
        let scheme = if self.tls { "https" } else { "http" };
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let client = format!("{scheme}://127.0.0.1:{}", self.members[at].client);
        let cluster: Vec<String> =
            self.members.iter().enumerate().map(|(at, member)| format!("m{at}={}", url(member.peer))).collect();
        let mut command = Command::new(binary());
        command
            .args(["--name", &format!("m{at}"), "--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &url(self.members[at].peer)])
            .args(["--initial-advertise-peer-urls", &url(self.members[at].peer)])
            .args(["--initial-cluster", &cluster.join(","), "--logger", "zap", "--log-outputs", "default"])
            .args(&self.arguments)
            .arg("--data-dir")
            .arg(self.data(at));
        let log = std::fs::File::options().create(true).append(true).open(self.log(at)).unwrap();
        let process = command.stdout(Stdio::null()).stderr(log).spawn();
        self.members[at].process = Some(process.unwrap_or_else(|error| panic!("{}: {error}", binary().display())));
    }

    fn data(&self, at: usize) -> PathBuf {
        self.folder.path().join(format!("m{at}"))
    }

    fn log(&self, at: usize) -> PathBuf {
        self.folder.path().join(format!("m{at}.log"))
    }

    /// Waits until every member that runs serves.
    pub async fn ready(&self) {
        for at in 0..self.members.len() {
            if self.members[at].process.is_some() {
                self.wait("health", || self.get(at, "/health").contains("\"true\"")).await;
            }
        }
    }

    async fn wait(&self, what: &str, mut check: impl FnMut() -> bool) {
        let began = Instant::now();
        while !check() {
            let log = || std::fs::read_to_string(self.log(0)).unwrap_or_default();
            assert!(began.elapsed() < READY, "etcd: no {what} within {READY:?}: {}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Its address, with a prefix such as `/a`.
    pub fn address(&self, prefix: &str) -> String {
        let members: Vec<String> = self.members.iter().map(|member| format!("127.0.0.1:{}", member.client)).collect();
        format!("etcd://{}{prefix}", members.join(","))
    }

    /// Where a member answers clients.
    pub fn port(&self, at: usize) -> u16 {
        self.members[at].client
    }

    /// What [`Self::start_with_tls`] made.
    pub fn certificate(&self) -> PathBuf {
        self.data(0).join("fixtures/client/cert.pem")
    }

    /// The member that leads.
    pub async fn leader(&self) -> usize {
        let mut found = None;
        self.wait("leader", || {
            found = (0..self.members.len()).find(|at| {
                let said = self.post(*at, "/v3/maintenance/status", "{}");
                let field =
                    |name: &str| said.split(&format!("\"{name}\":\"")).nth(1)?.split('"').next().map(str::to_owned);
                field("leader").is_some_and(|leader| Some(leader) == field("member_id"))
            });
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// Kills a member by signal 9.
    pub fn kill(&mut self, at: usize) {
        let mut process = self.members[at].process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Starts a member that was killed, over its own folder.
    pub fn restart(&mut self, at: usize) {
        self.spawn(at);
    }

    /// Stops a member in its tracks.
    pub fn stop(&self, at: usize) {
        self.signal(at, Signal::STOP);
    }

    /// Has it go on.
    pub fn resume(&self, at: usize) {
        self.signal(at, Signal::CONT);
    }

    fn signal(&self, at: usize, signal: Signal) {
        let pid = self.members[at].process.as_ref().unwrap().id();
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
    }

    fn connects(&self, at: usize) -> bool {
        TcpStream::connect(("127.0.0.1", self.members[at].client)).is_ok()
    }

    fn get(&self, at: usize, path: &str) -> String {
        self.http(at, &format!("GET {path} HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\n\r\n"))
    }

    /// Asks over etcd's JSON gateway.
    pub fn post(&self, at: usize, path: &str, body: &str) -> String {
        let length = body.len();
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        self.http(at, &(head + body))
    }

    /// Empty when there is no answer.
    fn http(&self, at: usize, request: &str) -> String {
        let mut said = String::new();
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.members[at].client)) else { return said };
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        if stream.write_all(request.as_bytes()).is_ok() {
            // What came before an error counts.
            let _ = stream.read_to_string(&mut said);
        }
        said
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for process in self.members.iter_mut().filter_map(|member| member.process.as_mut()) {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn binary() -> PathBuf {
    let ours = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.deps/etcd-3.4.23/bin/etcd");
    std::env::var_os("LLM2CLIP_ETCD").map_or_else(ours, PathBuf::from)
}

/// A port that was free just now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
