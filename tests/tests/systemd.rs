//! The units under a real systemd, which is process 1 of namespaces of its own: their sandbox lets a training run, and a restart
//! of the worker's daemon, by hand or by the watchdog, spares it. Needs root, `unshare` and systemd; skipped with a word otherwise.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use rustix::process::Signal;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tests::{Job, Recipe, losses, model, signal};

const PROGRAM: &str = "/lib/systemd/systemd";
/// The longest that a test waits for one thing.
const DEADLINE: Duration = Duration::from_secs(60);
/// Enough for what is done meanwhile.
const STEPS: u64 = 60;
const COORDINATOR: &str = "llm2clip-coordinator.service";
const WORKER: &str = "llm2clip-worker.service";

/// Nothing of this machine's is started, written or changed: only the folder's units are known, and what they keep goes to memory.
const BOOT: &str = r#"
mount --make-rprivate /
for folder in /run /var/lib /var/cache; do mount -t tmpfs none $folder; done
umount /sys/fs/cgroup/* 2>/dev/null
mount -t cgroup2 none /sys/fs/cgroup
export container=lxc SYSTEMD_UNIT_PATH="$1"
exec /lib/systemd/systemd --system --log-target=null --show-status=no --default-standard-output=null
"#;

/// A systemd that ends, with all that it started, with this.
struct Systemd {
    unshare: Child,
    /// Its process 1, as seen from here.
    pid: i32,
}

impl Systemd {
    /// Absent, with a word, where none can run.
    fn boot(units: &Path) -> Option<Self> {
        if !Path::new(PROGRAM).exists() || !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root and {PROGRAM}");
            return None;
        }
        for target in ["default", "sysinit", "basic", "shutdown", "network-online", "remote-fs", "multi-user"] {
            fs::write(units.join(format!("{target}.target")), format!("[Unit]\nDescription={target}\n")).unwrap();
        }
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--cgroup", "--ipc", "--uts"]);
        command.args(["sh", "-c", BOOT, "sh"]).arg(units);
        let unshare = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut systemd = Self { unshare: unshare.ok()?, pid: 0 };
        let began = Instant::now();
        while began.elapsed() < DEADLINE {
            let id = systemd.unshare.id();
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
            systemd.pid = children.trim().parse().unwrap_or(0);
            if systemd.pid != 0 && systemd.systemctl(&["show", "--property=Version"]).is_ok() {
                return Some(systemd);
            }
            if systemd.unshare.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        eprintln!("skipped: systemd does not run in namespaces here");
        None
    }

    /// What it prints; or what it says is wrong.
    fn systemctl(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.pid.to_string(),
            "--mount",
            "--pid",
            "--cgroup",
            "--ipc",
            "--uts",
            "systemctl",
        ]);
        let output = command.args(arguments).output().unwrap();
        let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() { Ok(said.trim().to_owned()) } else { Err(format!("{said}{wrong}")) }
    }

    fn start(&self, unit: &str) {
        let shown = |_| self.systemctl(&["status", "--no-pager", "--full", unit]).unwrap_or_else(|said| said);
        self.systemctl(&["start", unit]).map_err(shown).unwrap();
    }

    fn property(&self, unit: &str, name: &str) -> String {
        self.systemctl(&["show", "--value", "--property", name, unit]).unwrap()
    }

    /// Waits until a property is as it should be.
    fn wait_for(&self, unit: &str, name: &str, is: impl Fn(&str) -> bool) -> String {
        let began = Instant::now();
        loop {
            let value = self.property(unit, name);
            if is(&value) {
                return value;
            }
            assert!(began.elapsed() < DEADLINE, "{unit}: {name} is {value}");
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }

    /// A process of a unit's, by its number inside, as it is numbered here.
    fn outside(&self, inside: &str) -> i32 {
        let all = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let space = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let ours = space(self.pid);
        let found = all.filter(|pid: &i32| space(*pid) == ours).find(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default().to_owned();
            numbers.split_whitespace().last() == Some(inside)
        });
        found.unwrap_or_else(|| panic!("no process {inside} inside"))
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // It may have ended; with it, all inside are killed.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

/// The units as they are, but for where this build's programs, these settings and the job's folder are, and that no user is made
/// for them; the settings, as they are but for `settings`.
fn install(job: &Job) -> PathBuf {
    let units = job.folder().join("units");
    fs::create_dir_all(&units).unwrap();
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd");
    let programs = Job::binary("llm2clip").parent().unwrap().display().to_string();
    let folder = job.folder().display().to_string();
    for unit in [COORDINATOR, WORKER] {
        let text = fs::read_to_string(deploy.join(unit)).unwrap();
        let text = text.replace("/usr/local/bin", &programs).replace("/etc/llm2clip", &folder);
        let text = text.replace("/srv/llm2clip", &folder);
        let lines = text.lines().filter(|line| !line.starts_with("User=") && !line.starts_with("Group="));
        let environment = "[Service]\nEnvironment=OMP_WAIT_POLICY=passive";
        let text = lines.collect::<Vec<_>>().join("\n").replace("[Service]", environment);
        fs::write(units.join(unit), text + "\n").unwrap();
    }
    // It has a /tmp of its own, and the job is in the other one, as this build may be.
    let shown = units.join(format!("{COORDINATOR}.d"));
    fs::create_dir(&shown).unwrap();
    fs::write(shown.join("job.conf"), format!("[Service]\nBindReadOnlyPaths={folder} {programs}\n")).unwrap();
    let settings = "listen = '127.0.0.1:0'\nstate = '/var/lib/llm2clip'\n";
    fs::write(job.folder().join("coordinator.toml"), settings).unwrap();
    units
}

#[test]
fn trainings_run_in_the_sandbox_and_outlive_restarts_of_the_daemons() {
    let recipe = Recipe { steps: STEPS, vision: model("vit-tiny"), ..Recipe::default() };
    let (job, undisturbed) = (Job::new(&recipe), Job::new(&recipe));
    let units = install(&job);
    // The watchdog is not waited for a minute.
    let impatient = units.join(format!("{WORKER}.d"));
    fs::create_dir(&impatient).unwrap();
    fs::write(impatient.join("watchdog.conf"), "[Service]\nWatchdogSec=3\n").unwrap();
    let Some(systemd) = Systemd::boot(&units) else { return };

    systemd.start(COORDINATOR);
    let status = systemd.property(COORDINATOR, "StatusText");
    let url = status.strip_prefix("leads at ").unwrap().strip_suffix(", the only coordinator").unwrap().to_owned();
    let worker = format!("coordinator = '{url}'\nid = 'w'\ntrainers = 1\ncores = 2\nlease_s = 60\n");
    let worker = worker + "peer_host = '127.0.0.1'\nstate = '/var/lib/llm2clip-worker'\n";
    fs::write(job.folder().join("worker.toml"), worker).unwrap();
    systemd.start(WORKER);
    systemd.wait_for(WORKER, "StatusText", |status| status == format!("connected to {url}; 0 trainers"));

    let llm2clip = |arguments: &[&str]| job.llm2clip(&[arguments, &["--coordinator", &url]].concat());
    let launched = llm2clip(&["launch", job.recipe().to_str().unwrap(), "--ranks", "1", "-o", "json"]);
    let launched: serde_json::Value = serde_json::from_slice(&launched.stdout).unwrap();
    let id = launched["job"].as_str().unwrap().to_owned();
    job.wait_for_checkpoint(4);
    assert_eq!(systemd.property(WORKER, "StatusText"), format!("connected to {url}; 1 trainer"));
    let first = systemd.property(WORKER, "MainPID");
    systemd.systemctl(&["restart", WORKER]).unwrap();
    systemd.wait_for(WORKER, "StatusText", |status| status == format!("connected to {url}; 1 trainer"));

    // A daemon that does nothing any more is replaced.
    let second = systemd.property(WORKER, "MainPID");
    assert_ne!(first, second);
    signal(systemd.outside(&second), Signal::STOP);
    systemd.wait_for(WORKER, "NRestarts", |restarts| restarts == "1");
    systemd.wait_for(WORKER, "StatusText", |status| status.starts_with(&format!("connected to {url}; ")));
    assert_ne!(systemd.property(WORKER, "MainPID"), second);
    assert!(job.steps().len() < STEPS as usize, "the training went on meanwhile");

    let ended = llm2clip(&["status", &id, "--follow"]);
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let generations: Vec<u64> = job.steps().iter().map(|step| step.generation).collect();
    assert_eq!(
        (generations.len(), generations[0]),
        (STEPS as usize, *generations.last().unwrap()),
        "one trainer computed all of it"
    );
    undisturbed.run(1);
    // Its trainer may have another number of threads.
    for (step, loss) in losses(&undisturbed.steps()) {
        let found = losses(&job.steps())[&step];
        assert!((found / loss - 1.0).abs() < 1e-4, "step {step}: {found}, undisturbed {loss}");
    }
}
