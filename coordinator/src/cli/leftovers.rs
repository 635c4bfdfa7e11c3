//! Processes that an earlier `run` left behind when it was killed: they must be gone before the job goes on, or two
//! generations would write to one output.
//!
//! A worker of `run` keeps a record of each trainer in `STATE/worker-N/trainers/SLOT.json` (see the worker's supervisor).

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};
use serde::Deserialize;
use std::{fs, path::Path};

/// How long a killed process may take to be gone.
const GONE: rustix::time::Timespec = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };

/// What is needed of a trainer's record.
#[derive(Debug, Deserialize)]
struct Record {
    pid: i32,
    started_ticks: u64,
}

/// Ends every trainer that the workers under a state folder have on record, and waits until they are gone. Returns how
/// many there were.
pub(super) fn end(state: &Path) -> usize {
    let children = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let workers = children(state)
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("worker-")));
    let records = workers.flat_map(|worker| children(&worker.join("trainers")).collect::<Vec<_>>());
    let jsons = records.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    jsons.filter_map(|path| serde_json::from_slice::<Record>(&fs::read(path).ok()?).ok()).filter(end_one).count()
}

fn end_one(record: &Record) -> bool {
    let Some(pid) = Pid::from_raw(record.pid) else { return false };
    // Opened first: from here on the pid cannot come to mean another process unnoticed.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    if started_ticks(record.pid) != Some(record.started_ticks) {
        return false;
    }
    if kill_process_group(pid, Signal::KILL).is_err() {
        return false;
    }
    let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&GONE));
    true
}

/// Field 22 of `/proc/PID/stat`; the name in field 2 may contain blanks and parentheses.
fn started_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::process::CommandExt as _, process::Command};

    #[test]
    fn a_recorded_process_is_ended_and_another_with_its_pid_is_not() {
        let state = tempfile::tempdir().unwrap();
        let folder = state.path().join("worker-0/trainers");
        fs::create_dir_all(&folder).unwrap();
        let mut child = Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let ticks = started_ticks(pid).unwrap();
        let write = |ticks: u64| {
            fs::write(folder.join("0.json"), format!(r#"{{"schema":1,"pid":{pid},"started_ticks":{ticks}}}"#)).unwrap();
        };
        write(ticks + 1);
        assert_eq!(end(state.path()), 0);
        assert!(child.try_wait().unwrap().is_none(), "it is someone else's");
        write(ticks);
        assert_eq!(end(state.path()), 1);
        child.wait().unwrap();
        assert_eq!(end(state.path()), 0);
    }
}
