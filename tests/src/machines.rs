//! Machines of their own on one: network namespaces on two bridges, one for control and one for the data of trainers, whose cables
//! can be pulled.

use crate::{Job, Weather, family, signal, weather::Air};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// How long daemons may take to answer.
const READY: Duration = Duration::from_secs(60);
/// The bridges: their names and the first three numbers of their addresses.
const CONTROL: (&str, &str) = ("ctl", "10.77.0");
const DATA: (&str, &str) = ("data", "10.78.0");

/// Which cable of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cable {
    /// To coordinators and etcd.
    Control,
    /// To the other trainers.
    Data,
}

/// What is other than usual.
#[derive(Debug, Clone, Copy, Default)]
pub struct Setting<'s> {
    /// These cables have weather.
    pub weather: &'s [(usize, Cable)],
    /// Machines are far from each other: etcd's times and the leader's lease are as etcd's manual asks for a round trip of a second.
    pub far: bool,
}

/// Three machines, each with an etcd and a worker; the first two with a coordinator as well.
pub struct Machines<'a> {
    job: &'a Job,
    prefix: String,
    etcd: PathBuf,
    /// By machine and program.
    running: BTreeMap<(usize, &'static str), Child>,
    far: bool,
    airs: BTreeMap<(usize, Cable), Air>,
}

/// Jumbo frames, as in such networks.
const MTU: u32 = 9_000;
/// How many machines there are.
const COUNT: usize = 3;
/// How many clusters this process has made.
static NUMBER: AtomicU32 = AtomicU32::new(0);

impl<'a> Machines<'a> {
    /// Builds and starts them. Absent, with a word why, where there is no etcd or no right to make namespaces.
    pub fn start(job: &'a Job) -> Option<Self> {
        Self::start_in(job, Setting::default())
    }

    /// The same with what is other than usual.
    pub fn start_in(job: &'a Job, setting: Setting<'_>) -> Option<Self> {
        let etcd = etcd()?;
        // Tests run beside each other.
        let prefix = format!("lc{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let (running, airs) = (BTreeMap::new(), BTreeMap::new());
        let mut machines = Self { job, prefix, etcd, running, far: setting.far, airs };
        if let Err(error) = machines.wire(setting.weather) {
            eprintln!("skipped: network namespaces cannot be made here: {error}");
            return None;
        }
        for machine in 0..COUNT {
            machines.start_etcd(machine);
        }
        for machine in 0..COUNT {
            machines.wait(&format!("etcd of machine {machine}"), |all| all.etcd_serves(machine));
        }
        for machine in 0..COUNT {
            machines.start_daemons(machine);
        }
        machines.wait("three workers", |all| all.connected() == COUNT);
        Some(machines)
    }

    fn wire(&mut self, weather: &[(usize, Cable)]) -> Result<(), String> {
        let hub = self.name("hub");
        ip(&format!("netns add {hub}"))?;
        for (bridge, _) in [CONTROL, DATA] {
            ip(&format!("-n {hub} link add {bridge} type bridge"))?;
            ip(&format!("-n {hub} link set {bridge} up"))?;
        }
        for machine in 0..COUNT {
            let own = self.machine(machine);
            ip(&format!("netns add {own}"))?;
            ip(&format!("-n {own} link set lo up"))?;
            for ((bridge, net), cable) in [(CONTROL, Cable::Control), (DATA, Cable::Data)] {
                let port = port(bridge, machine);
                if weather.contains(&(machine, cable)) {
                    let end = format!("end-{port}");
                    self.airs.insert((machine, cable), Air::lay(&hub, &end, &port)?);
                    ip(&format!("-n {hub} link set {end} netns {own}"))?;
                    ip(&format!("-n {own} link set {end} name {bridge}"))?;
                } else {
                    ip(&format!("-n {own} link add {bridge} type veth peer name {port} netns {hub}"))?;
                }
                ip(&format!("-n {hub} link set {port} master {bridge} mtu {MTU} up"))?;
                ip(&format!("-n {own} link set {bridge} mtu {MTU}"))?;
                ip(&format!("-n {own} addr add {net}.{}/24 dev {bridge}", machine + 1))?;
                ip(&format!("-n {own} link set {bridge} up"))?;
            }
        }
        Ok(())
    }

    fn name(&self, what: &str) -> String {
        format!("{}-{what}", self.prefix)
    }

    fn machine(&self, machine: usize) -> String {
        self.name(&format!("m{machine}"))
    }

    /// A program on a machine, in the job's environment.
    fn on(&self, machine: usize, program: &Path) -> Command {
        let mut command = self.job.around(Command::new("ip"));
        command.args(["netns", "exec", &self.machine(machine)]).arg(program);
        command
    }

    fn spawn(&mut self, machine: usize, name: &'static str, mut command: Command) {
        let log = self.job.folder().join(format!("m{machine}-{name}.log"));
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.running.insert((machine, name), command.spawn().unwrap());
    }

    fn start_etcd(&mut self, machine: usize) {
        let hosts: Vec<String> = (1..=COUNT).map(|host| format!("{}.{host}", CONTROL.1)).collect();
        let mut command = self.on(machine, &self.etcd);
        crate::etcd::member(&mut command, &hosts, machine, self.job.folder());
        if self.far {
            command.args(["--heartbeat-interval", "1000", "--election-timeout", "10000"]);
        }
        self.spawn(machine, "etcd", command);
    }

    fn start_daemons(&mut self, machine: usize) {
        let address = |net: &str| format!("{net}.{}", machine + 1);
        if machine < 2 {
            let members: Vec<String> = (1..=COUNT).map(|n| format!("{}.{n}:2379", CONTROL.1)).collect();
            let store = format!("etcd://{}/team", members.join(","));
            let mut command = self.on(machine, &Job::binary("llm2clip"));
            let listen = format!("{}:7070", address(CONTROL.1));
            let lease = if self.far { "30" } else { "4" };
            command.args(["serve", "--listen", &listen, "--store", &store, "--leader-lease-s", lease]);
            self.spawn(machine, "coordinator", command);
        }
        let mut command = self.on(machine, &Job::binary("llm2clip-worker"));
        command.args(["--coordinator", &urls(), "--id", &format!("m{machine}"), "--peer-host", &address(DATA.1)]);
        command.args(["--trainers", "1", "--cores", "1", "--lease-s", "120"]);
        command.arg("--state").arg(self.job.folder().join(format!("worker-{machine}")));
        // What happens meanwhile happens before the last step.
        command.env("LLM2CLIP_FAILPOINTS", "clip.step=slow:200@1");
        self.spawn(machine, "worker", command);
    }

    /// Pulls a cable, or puts it back. What is under way on it is lost without a word.
    pub fn plug(&self, machine: usize, cable: Cable, there: bool) {
        let bridge = if cable == Cable::Control { CONTROL.0 } else { DATA.0 };
        let state = if there { "up" } else { "down" };
        ip(&format!("-n {} link set {} {state}", self.name("hub"), port(bridge, machine))).unwrap();
    }

    /// What becomes of the packets on a cable that has weather.
    pub fn weather(&mut self, machine: usize, cable: Cable, weather: &Weather) {
        self.airs.get_mut(&(machine, cable)).expect("the setting names it").set(weather);
    }

    /// Takes a machine's power: its cables first, so that nobody hears of the end of its connections.
    pub fn power_off(&mut self, machine: usize) {
        self.plug(machine, Cable::Control, false);
        self.plug(machine, Cable::Data, false);
        let own: Vec<_> = self.running.keys().filter(|(of, _)| *of == machine).copied().collect();
        for key in own {
            let mut child = self.running.remove(&key).unwrap();
            family(i32::try_from(child.id()).unwrap()).into_iter().for_each(|pid| signal(pid, Signal::KILL));
            child.wait().unwrap();
        }
    }

    /// Starts a machine again, over its disks.
    pub fn power_on(&mut self, machine: usize) {
        self.plug(machine, Cable::Control, true);
        self.plug(machine, Cable::Data, true);
        self.start_etcd(machine);
        self.start_daemons(machine);
    }

    /// The machine whose coordinator leads.
    pub fn leader(&self) -> usize {
        let mut found = None;
        self.wait("a leader", |all| {
            let leads = |machine: &usize| {
                let url = format!("http://{}.{}:7070", CONTROL.1, machine + 1);
                all.running.contains_key(&(*machine, "coordinator"))
                    && all.says(*machine, &url, &["ps"]).status.success()
            };
            found = (0..2).find(leads);
            found.is_some()
        });
        found.unwrap()
    }

    fn says(&self, machine: usize, url: &str, arguments: &[&str]) -> Output {
        let mut command = self.on(machine, &Job::binary("llm2clip"));
        command.args(["--coordinator", url]).args(arguments).output().unwrap()
    }

    /// Launches the job with a rank on each; its id.
    pub fn launch(&self) -> String {
        let launched = self.json(&["launch", self.job.recipe().to_str().unwrap(), "--ranks", "3"]);
        launched["job"].as_str().unwrap_or_else(|| panic!("{launched}")).to_owned()
    }

    /// Waits for the job's end, which is a good one.
    pub fn finish(&self, id: &str) {
        let events = self.llm2clip(&["events", id, "--follow"]);
        let status = self.json(&["status", id]);
        assert_eq!(status["phase"]["phase"], "succeeded", "{status}\n{}", String::from_utf8_lossy(&events.stdout));
    }

    /// A verb, from the last machine.
    pub fn llm2clip(&self, arguments: &[&str]) -> Output {
        self.says(COUNT - 1, &urls(), arguments)
    }

    /// What `-o json` of a verb says; null while nobody answers.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.llm2clip(&[arguments, &["-o", "json"]].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn connected(&self) -> usize {
        let workers = self.json(&["workers"]);
        let workers = workers["workers"].as_array().cloned().unwrap_or_default();
        workers.iter().filter(|worker| worker["connected"] == true).count()
    }

    fn etcd_serves(&self, machine: usize) -> bool {
        let mut command = self.on(machine, Path::new("bash"));
        let url = format!("/dev/tcp/{}.{}/2379", CONTROL.1, machine + 1);
        let ask = format!("exec 3<>{url} && printf 'GET /health HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3");
        let output = command.args(["-c", &ask]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("\"true\"")
    }

    /// Waits until an event of a job says this.
    pub fn wait_for_event(&self, id: &str, text: &str) {
        let mut command = self.on(COUNT - 1, &Job::binary("llm2clip"));
        command.args(["--coordinator", &urls(), "events", id, "--follow"]);
        crate::wait_for_line(command, text);
    }

    /// Waits until the job runs with so many ranks; returns how long that took.
    pub fn wait_for_ranks(&self, id: &str, ranks: usize) -> Duration {
        let began = Instant::now();
        self.wait(&format!("{ranks} ranks"), |all| {
            let status = all.json(&["status", id]);
            status["ranks"].as_array().is_some_and(|found| found.len() == ranks)
                && status["phase"]["phase"] == "running"
        });
        began.elapsed()
    }

    fn wait(&self, what: &str, mut check: impl FnMut(&Self) -> bool) {
        let began = Instant::now();
        while !check(self) {
            if began.elapsed() > READY {
                self.tell_logs();
                panic!("no {what} within {READY:?}");
            }
            // Each look starts a program; on few cores it must not keep those from working that are waited for.
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }

    fn tell_logs(&self) {
        for (machine, name) in self.running.keys() {
            let log = self.job.folder().join(format!("m{machine}-{name}.log"));
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(15)..].join("\n");
            let _ = writeln!(std::io::stderr(), "== machine {machine}, {name}\n{tail}");
        }
    }
}

impl Drop for Machines<'_> {
    fn drop(&mut self) {
        for machine in 0..COUNT {
            self.power_off(machine);
        }
        for machine in 0..COUNT {
            let _ = ip(&format!("netns del {}", self.machine(machine)));
        }
        let _ = ip(&format!("netns del {}", self.name("hub")));
    }
}

/// The program. Absent, with a word, where there is none.
pub(crate) fn etcd() -> Option<PathBuf> {
    let ours = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.deps/etcd-3.4.23/bin/etcd");
    let etcd = std::env::var_os("LLM2CLIP_ETCD").map_or_else(ours, PathBuf::from);
    if !etcd.is_file() {
        eprintln!("skipped: {} is missing; `make etcd` fetches it, or LLM2CLIP_ETCD names one", etcd.display());
        return None;
    }
    Some(etcd)
}

fn port(bridge: &str, machine: usize) -> String {
    format!("{bridge}{machine}")
}

fn urls() -> String {
    [1, 2].map(|n| format!("http://{}.{n}:7070", CONTROL.1)).join(",")
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split(' ')).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("ip: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}
