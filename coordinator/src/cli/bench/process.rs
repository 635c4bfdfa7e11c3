//! Processes that are measured. The coordinator is one of its own, so that its time and memory are its own.

use super::super::{error::CliError, locate};
use rustix::process::Pid;
use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// How long it may take to begin.
const BEGIN: Duration = Duration::from_secs(20);

/// In which Linux tells programs of the time that processes used (USER_HZ).
const TICKS_PER_S: f64 = 100.0;

/// `llm2clip serve` on loopback. It ends when this is dropped.
pub(super) struct Server {
    child: Child,
    url: String,
}

/// What a process has used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    /// Seconds of processors.
    pub(super) cpu_s: f64,
    /// Resident memory.
    pub(super) resident_bytes: u64,
}

impl Server {
    /// Starts it over a state folder.
    pub(super) async fn start(state: &Path) -> Result<Self, CliError> {
        let failed = |error: std::io::Error| CliError::new(1, format!("the coordinator cannot be started: {error}"));
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(program);
        command.args(["serve", "--listen", "127.0.0.1:0", "--state"]).arg(state);
        // What it logs of 10,000 workers is no part of the measurement; what goes wrong is.
        command.env("LLM2CLIP_LOG", "error").stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().map_err(failed)?;
        let mut server = Self { child, url: String::new() };
        let began = Instant::now();
        while began.elapsed() < BEGIN {
            if let Some(address) = locate::address(state) {
                server.url = address.url;
                return Ok(server);
            }
            sleep(Duration::from_millis(20)).await;
        }
        Err(CliError::new(1, format!("the coordinator did not begin within {} s", BEGIN.as_secs())))
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// What it has used so far.
    pub(super) fn usage(&self) -> Result<Usage, CliError> {
        let path = format!("/proc/{}", self.child.id());
        let read = |name: &str| {
            let gone = |error| CliError::new(1, format!("the coordinator ended while it was measured: {error}"));
            fs::read_to_string(format!("{path}/{name}")).map_err(gone)
        };
        let cpu_s = cpu_ticks(&read("stat")?) as f64 / TICKS_PER_S;
        let resident_bytes = resident_kib(&read("status")?) << 10;
        Ok(Usage { cpu_s, resident_bytes })
    }
}

/// Fields 14 and 15 of `/proc/PID/stat`, counted from the end of the name, which may hold anything.
fn cpu_ticks(stat: &str) -> u64 {
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields.split_ascii_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// `VmRSS` of `/proc/PID/status`.
fn resident_kib(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok()).unwrap_or_default()
}

/// Whether a process was stopped by a signal and waits to go on.
pub(super) fn is_stopped(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    state_of(&stat) == Some('T')
}

/// A stopped one among the processes that came of this one.
pub(super) fn stopped_below(pid: u32) -> Option<Pid> {
    // A child belongs to the thread that started it.
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let children: Vec<String> =
        children.flat_map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect();
    children.iter().filter_map(|child| child.parse().ok()).find_map(|child: u32| {
        let own = Pid::from_raw(child.cast_signed()).filter(|pid| is_stopped(*pid));
        own.or_else(|| stopped_below(child))
    })
}

/// Field 3 of `/proc/PID/stat`, counted from the end of the name, which may hold anything.
fn state_of(stat: &str) -> Option<char> {
    stat.rsplit_once(") ")?.1.chars().next()
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_a_process_used_is_read_from_what_linux_says() {
        let stat = "42 (a) Z 1) S 1 42 42 0 -1 4194304 1 2 3 4 50 6 7 8 20 0 1 0 777 9 9";
        assert_eq!(super::cpu_ticks(stat), 56);
        assert_eq!(super::state_of(stat), Some('S'));
        assert_eq!(super::resident_kib("Name:\tx\nVmRSS:\t   1234 kB\n"), 1234);
    }
}
