//! The parent of one trainer: a process that does nothing but wait for it, and writes down how it ended. It outlives the daemon,
//! so that a daemon that was restarted, or killed, still learns the true exit status of a trainer that ended meanwhile: the
//! system tells it to parents alone.
//!
//! `llm2clip-worker --hold FILE PROGRAM ARGUMENT…`: the trainer's process id, or why there is none, is a line on standard
//! output; what the trainer prints goes where this process's standard error does.

use super::process::Exit;
use common::daemon::notify;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::AsFd as _,
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

/// The argument that makes the daemon's program this one.
pub const ARGUMENT: &str = "--hold";

/// How a trainer ended, version 1 of the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EndRecord {
    schema: u32,
    pid: u32,
    /// One of the two.
    code: Option<i32>,
    signal: Option<i32>,
}

/// Where the end of a trainer is written, among the records in `folder`.
pub fn path(folder: &Path, slot: u32) -> PathBuf {
    folder.join(format!("{slot}.end"))
}

/// What a holder keeps locked as long as it lives.
fn held(path: &Path) -> PathBuf {
    path.with_extension("held")
}

/// Whether nobody will write to `path` any more: its holder is gone. One of a version before this lock is never known to be.
pub fn is_gone(path: &Path) -> bool {
    let Ok(file) = File::open(held(path)) else { return false };
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_ok()
}

/// How the process ended; absent while that is not written.
pub fn read(path: &Path, pid: u32) -> Option<Exit> {
    let record: EndRecord = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    match (record.pid == pid, record.code, record.signal) {
        (true, Some(code), None) => Some(Exit::Code(code)),
        (true, None, Some(signal)) => Some(Exit::Signal(signal)),
        _ => None,
    }
}

/// What the daemon reads of the first line: the trainer's process id.
///
/// # Errors
/// Why there is none.
pub fn parse(line: &str) -> io::Result<u32> {
    match line.trim_end().split_once(' ') {
        Some(("pid", pid)) => pid.parse().map_err(io::Error::other),
        Some(("errno", code)) => Err(code.parse().map_or_else(io::Error::other, io::Error::from_raw_os_error)),
        _ => Err(io::Error::other(format!("the process that was to start it said `{}`", line.trim_end()))),
    }
}

/// Runs the trainer that the arguments after [`ARGUMENT`] name.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let (Some(path), Some(program)) = (arguments.next(), arguments.next()) else {
        eprintln!("error: {ARGUMENT} needs a file and a program");
        return ExitCode::from(2);
    };
    match hold(Path::new(&path), Command::new(program).args(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: how the trainer ended could not be kept: {error}");
            ExitCode::FAILURE
        }
    }
}

fn hold(path: &Path, command: &mut Command) -> io::Result<()> {
    let output = || io::stderr().as_fd().try_clone_to_owned().map(Stdio::from);
    command.stdin(Stdio::null()).stdout(output()?).stderr(output()?).process_group(0);
    // The service is the daemon: nobody else speaks for it.
    for name in notify::VARIABLES {
        command.env_remove(name);
    }
    // Let go by the system when this process is gone. Without it, where there is no space, whoever asks waits a little longer.
    let held = File::create(held(path)).ok();
    let _ = held.as_ref().map(|file| rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive));
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let code = error.raw_os_error().unwrap_or_default();
            return writeln!(io::stdout(), "errno {code}");
        }
    };
    // The daemon may be gone already.
    let _ = writeln!(io::stdout(), "pid {}", child.id());
    let status = child.wait()?;
    let record = EndRecord { schema: 1, pid: child.id(), code: status.code(), signal: status.signal() };
    let temporary = path.with_extension("end.tmp");
    let mut file = File::create(&temporary)?;
    // Not synced: it is for a daemon of this machine's present life, and a disk that is busy would hold up the news of a death.
    file.write_all(&serde_json::to_vec(&record)?)?;
    fs::rename(&temporary, path)?;
    drop(held);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_process_ended_is_kept_and_of_another_process_it_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path(), 3);
        let check = |script: &str, expected: Exit| {
            hold(&path, Command::new("sh").args(["-c", script])).unwrap();
            let record: EndRecord = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            assert_eq!(read(&path, record.pid), Some(expected));
            assert_eq!(read(&path, record.pid + 1), None);
        };
        check("exit 7", Exit::Code(7));
        check("kill -9 $$", Exit::Signal(9));
        assert_eq!(read(&folder.path().join("none"), 1), None);
    }

    #[test]
    fn a_holder_that_is_gone_is_told_from_one_that_may_still_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path(), 0);
        assert!(!is_gone(&path), "one of an earlier version");
        let file = File::create(held(&path)).unwrap();
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(!is_gone(&path));
        drop(file);
        assert!(is_gone(&path));
        hold(&path, Command::new("sh").args(["-c", "exit 0"])).unwrap();
        assert!(is_gone(&path) && path.exists());
    }

    #[test]
    fn the_first_line_is_a_process_or_the_systems_reason() {
        assert_eq!(parse("pid 77\n").unwrap(), 77);
        assert_eq!(parse("errno 2\n").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(parse("").unwrap_err().to_string().contains("said ``"));
    }
}
