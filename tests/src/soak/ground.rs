//! Three machines on loopback: an etcd member and a worker each, a coordinator on the first two. Whatever is a daemon is started
//! again a second after it ended, as systemd does.

use super::blow::{Blow, Kind, Seat, seats};
use crate::{Job, machines, signal};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    time::{Duration, Instant},
};

/// How many machines there are.
pub(super) const MACHINES: usize = 3;
/// How many of them have a coordinator.
pub(super) const COORDINATORS: usize = 2;
/// After how long systemd starts a daemon again (`RestartSec` of the units in `deploy/`).
const RESTART: Duration = Duration::from_secs(1);
/// How long daemons may take to answer.
const READY: Duration = Duration::from_secs(60);
/// What a device would take for a step: it leaves the few cores of a test machine to those that are started again.
pub(super) const DEVICE: Duration = Duration::from_millis(200);

/// The cluster.
pub(super) struct Ground<'a> {
    job: &'a Job,
    etcd: PathBuf,
    /// The first three numbers of its addresses.
    net: String,
    running: BTreeMap<Seat, Child>,
    /// What is to be started again, and when.
    due: Vec<(Instant, Seat)>,
    /// What stands still, and until when.
    standing: Vec<(Instant, i32)>,
    /// How many daemons ended that nobody killed.
    pub(super) own_ends: u64,
}

impl<'a> Ground<'a> {
    /// Starts it. Absent, with a word why, where there is no etcd.
    pub(super) fn start(job: &'a Job) -> Option<Self> {
        let etcd = machines::etcd()?;
        // All of 127.0.0.0/8 is this machine: a cluster of each process has addresses of its own.
        let pid = std::process::id();
        let net = format!("127.{}.{}", 1 + (pid >> 8) % 250, pid % 256);
        let (running, due, standing) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut ground = Self { job, etcd, net, running, due, standing, own_ends: 0 };
        let daemons = |kind: Kind| seats().into_iter().filter(move |seat| seat.kind == kind);
        daemons(Kind::Etcd).for_each(|seat| ground.begin(seat));
        daemons(Kind::Coordinator).for_each(|seat| ground.begin(seat));
        daemons(Kind::Worker).for_each(|seat| ground.begin(seat));
        let began = Instant::now();
        while ground.connected() < MACHINES {
            assert!(began.elapsed() < READY, "no {MACHINES} workers within {READY:?}; see {:?}", job.folder());
            std::thread::park_timeout(Duration::from_millis(200));
        }
        Some(ground)
    }

    fn address(&self, machine: usize) -> String {
        format!("{}.{}", self.net, machine + 1)
    }

    fn urls(&self) -> String {
        let url = |machine| format!("http://{}:7070", self.address(machine));
        (0..COORDINATORS).map(url).collect::<Vec<_>>().join(",")
    }

    fn state(&self, machine: usize) -> PathBuf {
        self.job.folder().join(format!("worker-{machine}"))
    }

    fn begin(&mut self, seat: Seat) {
        let mut command = match seat.kind {
            Kind::Etcd => self.etcd(seat.machine),
            Kind::Coordinator => self.coordinator(seat.machine),
            Kind::Worker => self.worker(seat.machine),
            Kind::Trainer | Kind::Holder => unreachable!("daemons start those"),
        };
        let log = self.job.folder().join(format!("{}-{}.log", seat.kind, seat.machine));
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.running.insert(seat, command.spawn().unwrap());
    }

    fn etcd(&self, machine: usize) -> Command {
        let hosts: Vec<String> = (0..MACHINES).map(|machine| self.address(machine)).collect();
        let mut command = self.job.around(Command::new(&self.etcd));
        crate::etcd::member(&mut command, &hosts, machine, self.job.folder());
        command
    }

    fn coordinator(&self, machine: usize) -> Command {
        let members: Vec<String> = (0..MACHINES).map(|machine| format!("{}:2379", self.address(machine))).collect();
        let store = format!("etcd://{}/team", members.join(","));
        let listen = format!("{}:7070", self.address(machine));
        self.job.command(&["serve", "--listen", &listen, "--store", &store, "--leader-lease-s", "4"])
    }

    fn worker(&self, machine: usize) -> Command {
        let mut command = self.job.around(Command::new(Job::binary("llm2clip-worker")));
        command.args(["--coordinator", &self.urls(), "--id", &format!("m{machine}"), "--trainers", "1"]);
        command.args(["--cores", "1", "--lease-s", "120", "--peer-host", &self.address(machine)]);
        command
            .arg("--state")
            .arg(self.state(machine))
            .env("LLM2CLIP_FAILPOINTS", format!("clip.step=slow:{}@1", DEVICE.as_millis()));
        command
    }

    /// A verb.
    pub(super) fn llm2clip(&self, arguments: &[&str]) -> Output {
        let urls = self.urls();
        self.job.llm2clip(&[&["--coordinator", urls.as_str()], arguments].concat())
    }

    /// What `-o json` of a verb says; null while nobody answers.
    pub(super) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_slice(&self.llm2clip(&[arguments, &["-o", "json"]].concat()).stdout).unwrap_or_default()
    }

    fn connected(&self) -> usize {
        let workers = self.json(&["workers"])["workers"].as_array().cloned().unwrap_or_default();
        workers.iter().filter(|worker| worker["connected"] == true).count()
    }

    /// The processes in a seat: one, none while it is being started again, or what is left of two.
    pub(super) fn processes(&self, seat: Seat) -> Vec<i32> {
        let ours = |child: &Child| i32::try_from(child.id()).unwrap();
        match seat.kind {
            Kind::Trainer | Kind::Holder => below(&self.state(seat.machine), seat.kind),
            _ => self.running.get(&seat).map(ours).into_iter().collect(),
        }
    }

    /// Strikes; whoever is between two processes is passed over for the next one. Returns what happened.
    pub(super) fn strike(&mut self, blow: Blow) -> Blow {
        let here = |seat: Seat| {
            let all = seats();
            let from = all.iter().position(|other| *other == seat).unwrap();
            let next = all.iter().cycle().skip(from).take(all.len()).copied();
            next.map(|seat| (seat, self.processes(seat))).find(|(_, pids)| !pids.is_empty()).unwrap()
        };
        match blow {
            Blow::Kill(seat) => {
                let (seat, pids) = here(seat);
                pids.into_iter().for_each(|pid| signal(pid, Signal::KILL));
                self.bury(seat);
                Blow::Kill(seat)
            }
            Blow::Stop(seat, pause) => {
                let (seat, pids) = here(seat);
                for pid in pids {
                    signal(pid, Signal::STOP);
                    self.standing.push((Instant::now() + pause, pid));
                }
                Blow::Stop(seat, pause)
            }
            Blow::Machine(machine) => {
                let own = || seats().into_iter().filter(|seat| seat.machine == machine);
                own().flat_map(|seat| self.processes(seat)).for_each(|pid| signal(pid, Signal::KILL));
                own().for_each(|seat| self.bury(seat));
                blow
            }
        }
    }

    fn bury(&mut self, seat: Seat) {
        if let Some(mut child) = self.running.remove(&seat) {
            child.wait().unwrap();
            self.due.push((Instant::now() + RESTART, seat));
        }
    }

    /// Starts again what is due, and lets go on what stood long enough.
    pub(super) fn tend(&mut self) {
        let now = Instant::now();
        let ended = |child: &mut Child| child.try_wait().unwrap();
        let ends: Vec<_> =
            self.running.iter_mut().filter_map(|(seat, child)| ended(child).map(|how| (*seat, how))).collect();
        for (seat, how) in ends {
            eprintln!("the {seat} ended by itself: {how}");
            self.own_ends += 1;
            self.bury(seat);
        }
        let (over, standing): (Vec<_>, Vec<_>) = self.standing.drain(..).partition(|(until, _)| *until <= now);
        self.standing = standing;
        over.into_iter().for_each(|(_, pid)| signal(pid, Signal::CONT));
        let (due, later): (Vec<_>, Vec<_>) = self.due.drain(..).partition(|(at, _)| *at <= now);
        self.due = later;
        due.into_iter().for_each(|(_, seat)| self.begin(seat));
    }
}

impl Drop for Ground<'_> {
    fn drop(&mut self) {
        for (_, mut child) in std::mem::take(&mut self.running) {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        let left = |seat: Seat| self.processes(seat);
        seats().into_iter().flat_map(left).for_each(|pid| signal(pid, Signal::KILL));
    }
}

/// Trainers and their holders over a worker's state, whichever daemon started them.
fn below(state: &Path, kind: Kind) -> Vec<i32> {
    let prefix = state.join("trainers");
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<i32>().ok());
    let of = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        let words: Vec<&str> = line.split('\0').collect();
        let own = words.iter().any(|word| Path::new(word).starts_with(&prefix));
        own && kind == if words.contains(&"--hold") { Kind::Holder } else { Kind::Trainer }
    };
    pids.filter(of).collect()
}

/// Keeps what a verb said, for whoever reads the story afterwards.
pub(super) fn keep(folder: &Path, name: &str, output: &Output) {
    fs::write(folder.join(name), &output.stdout).unwrap();
}
