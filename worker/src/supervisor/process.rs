//! A trainer's process: a child, or one that an earlier daemon started.

use common::status::FailureCause;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::{
    fs, io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt as _},
    process::Command,
};
use tokio::io::{Interest, unix::AsyncFd};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By a signal.
    Signal(i32),
    /// By itself.
    Code(i32),
    /// Nobody here was its parent, so nobody was told.
    Unknown,
}

impl Exit {
    /// Why it was lost, given what it said last; absent when it ended well.
    pub fn cause(self, said: Option<String>) -> Option<FailureCause> {
        match (self, said) {
            (_, Some(message)) => Some(FailureCause::Error { message }),
            (Exit::Signal(signal), None) => Some(FailureCause::Signal { signal }),
            (Exit::Code(0), None) => None,
            (Exit::Code(code), None) => Some(FailureCause::ExitCode { code }),
            (Exit::Unknown, None) => Some(FailureCause::Error {
                message: "it ended without a word; how is not known, because its worker daemon was restarted meanwhile"
                    .to_owned(),
            }),
        }
    }
}

/// A process that is watched. Dropping it leaves it running.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Child(tokio::process::Child),
    Adopted(AsyncFd<OwnedFd>),
}

impl Process {
    /// Starts a program in a process group of its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(command: Command) -> io::Result<Self> {
        let child = tokio::process::Command::from(command).process_group(0).spawn()?;
        let raw = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let pid = raw.ok_or_else(|| io::Error::other("the system gave the process no id"))?;
        Ok(Self { pid, kind: Kind::Child(child) })
    }

    /// Takes up a process that began at `started_ticks`; `None` when it is gone.
    ///
    /// # Errors
    /// When the system does not let it be watched.
    pub fn adopt(pid: u32, started_ticks: u64) -> io::Result<Option<Self>> {
        let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let descriptor = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(descriptor) => descriptor,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Read after the descriptor was opened: what it names cannot be another process any more.
        match started(pid.as_raw_nonzero().get().unsigned_abs()) {
            Ok(found) if found == started_ticks => {}
            _ => return Ok(None),
        }
        #[expect(deprecated, reason = "what replaces it is unsafe; an owned descriptor is neither closed nor replaced")]
        let descriptor = AsyncFd::with_interest(descriptor, Interest::READABLE)?;
        Ok(Some(Self { pid, kind: Kind::Adopted(descriptor) }))
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Waits for its end. It may be dropped and called again.
    pub async fn wait(&mut self) -> Exit {
        match &mut self.kind {
            Kind::Child(child) => match child.wait().await {
                Ok(status) => match (status.signal(), status.code()) {
                    (Some(signal), _) => Exit::Signal(signal),
                    (None, Some(code)) => Exit::Code(code),
                    (None, None) => Exit::Unknown,
                },
                Err(error) => {
                    tracing::error!(pid = self.pid.as_raw_nonzero().get(), %error, "cannot wait for a child");
                    Exit::Unknown
                }
            },
            Kind::Adopted(descriptor) => {
                if let Err(error) = descriptor.readable().await.map(drop) {
                    tracing::error!(pid = self.pid.as_raw_nonzero().get(), %error, "cannot wait for a process");
                }
                Exit::Unknown
            }
        }
    }

    /// Sends a signal to its process group.
    pub fn signal(&self, signal: Signal) {
        if let Err(error) = kill_process_group(self.pid, signal) {
            tracing::warn!(pid = self.pid.as_raw_nonzero().get(), %error, "could not signal a trainer");
        }
    }
}

/// When a process began, in clock ticks since the machine's start.
///
/// # Errors
/// When there is no such process, or it has ended and only waits for its parent.
pub fn started(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_started(&stat).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the process has ended"))
}

/// Field 22 of `/proc/PID/stat`; the name, field 2, may hold anything, so fields are counted from its end.
fn parse_started(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_found_behind_any_name_and_a_zombie_has_none() {
        let stat = "42 (a) Z 1) S 1 42 42 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 777 9 9";
        assert_eq!(parse_started(stat), Some(777));
        assert_eq!(parse_started(&stat.replace(") S", ") Z")), None);
        assert!(started(std::process::id()).unwrap() > 0);
    }

    #[test]
    fn the_last_word_explains_more_than_the_exit() {
        let said = Some("no file".to_owned());
        assert_eq!(Exit::Code(1).cause(said), Some(FailureCause::Error { message: "no file".into() }));
        assert_eq!(Exit::Code(0).cause(None), None);
        assert_eq!(Exit::Code(101).cause(None), Some(FailureCause::ExitCode { code: 101 }));
        assert_eq!(Exit::Signal(9).cause(None), Some(FailureCause::Signal { signal: 9 }));
        assert!(Exit::Unknown.cause(None).unwrap().to_string().contains("not known"));
    }

    #[tokio::test]
    async fn an_adopted_process_is_seen_to_end_and_a_later_one_is_not_taken_for_it() {
        let mut command = Command::new("sleep");
        command.arg("60");
        let mut child = Process::spawn(command).unwrap();
        let ticks = started(child.id()).unwrap();
        assert!(Process::adopt(child.id(), ticks + 1).unwrap().is_none());
        let mut adopted = Process::adopt(child.id(), ticks).unwrap().unwrap();
        adopted.signal(Signal::KILL);
        assert_eq!(adopted.wait().await, Exit::Unknown);
        assert_eq!(child.wait().await, Exit::Signal(9));
        assert!(Process::adopt(child.id(), ticks).unwrap().is_none());
    }
}
