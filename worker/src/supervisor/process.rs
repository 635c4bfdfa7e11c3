//! A trainer's process: a child, or one that an earlier daemon started.

use super::hold;
use common::{pulse::ProcessState, status::FailureCause};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
    time::Timespec,
};
use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::{fd::OwnedFd, unix::process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, sleep},
};

/// How long the holder may take to start a trainer.
const START_DEADLINE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };
/// How long after a process is gone its holder may take to say how it ended, if it lives.
const END_DEADLINE: Duration = Duration::from_secs(10);
/// How often that is looked for.
const LOOK: Duration = Duration::from_millis(20);

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
    pub fn cause(self, said: Option<FailureCause>) -> Option<FailureCause> {
        match (self, said) {
            (_, Some(said)) => Some(said),
            (Exit::Signal(signal), None) => Some(FailureCause::Signal { signal }),
            (Exit::Code(0), None) => None,
            (Exit::Code(code), None) => Some(FailureCause::ExitCode { code }),
            // Its daemon and what held it went as well: the machine did, or as good as. It said nothing of a fault of its own,
            // which another one would find again.
            (Exit::Unknown, None) => Some(FailureCause::WorkerLost),
        }
    }
}

/// A process that is watched. Dropping it leaves it running.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    kind: Kind,
    /// Where its holder writes how it ended; absent when it has none, or none any more.
    end: Option<PathBuf>,
    /// Until when that is waited for, once the process is gone.
    until: Option<Instant>,
}

#[derive(Debug)]
enum Kind {
    /// A child, or the child that holds it.
    Child(tokio::process::Child),
    Adopted(AsyncFd<OwnedFd>),
}

impl Process {
    /// Starts a program in a process group of its own, held by nobody but this process.
    #[cfg(test)]
    fn spawn(command: Command) -> io::Result<Self> {
        let child = tokio::process::Command::from(command).process_group(0).spawn()?;
        let raw = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let pid = raw.ok_or_else(|| io::Error::other("the system gave the process no id"))?;
        Ok(Self { pid, kind: Kind::Child(child), end: None, until: None })
    }

    /// Starts a program in a process group of its own, as the child of a `holder` (see [`hold`]) that writes to `end` how it
    /// ended. What it prints goes to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_held(holder: &Path, end: PathBuf, command: &Command, log: File) -> io::Result<Self> {
        match fs::remove_file(&end) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut holding = Command::new(holder);
        holding.arg(hold::ARGUMENT).arg(&end).arg(command.get_program()).args(command.get_args());
        holding.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        holding.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = tokio::process::Command::from(holding).process_group(0).spawn()?;
        let out = child.stdout.take().ok_or_else(|| io::Error::other("the holder has no output"))?;
        let pid = hold::parse(&first_line(File::from(out.into_owned_fd()?))?)?;
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the system gave the process no id"))?;
        Ok(Self { pid, kind: Kind::Child(child), end: Some(end), until: None })
    }

    /// Takes up a process that began at `started_ticks`, whose holder writes to `end`; `None` when it is gone.
    ///
    /// # Errors
    /// When the system does not let it be watched.
    pub fn adopt(pid: u32, started_ticks: u64, end: Option<PathBuf>) -> io::Result<Option<Self>> {
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
        Ok(Some(Self { pid, kind: Kind::Adopted(descriptor), end, until: None }))
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Waits for its end. It may be dropped and called again.
    pub async fn wait(&mut self) -> Exit {
        let pid = self.id();
        let child = match &mut self.kind {
            Kind::Child(child) => match child.wait().await {
                Ok(status) => match (status.signal(), status.code()) {
                    (Some(signal), _) => Exit::Signal(signal),
                    (None, Some(code)) => Exit::Code(code),
                    (None, None) => Exit::Unknown,
                },
                Err(error) => {
                    tracing::error!(pid, %error, "cannot wait for a child");
                    Exit::Unknown
                }
            },
            Kind::Adopted(descriptor) => {
                if let Err(error) = descriptor.readable().await.map(drop) {
                    tracing::error!(pid, %error, "cannot wait for a process");
                }
                Exit::Unknown
            }
        };
        let Some(end) = self.end.clone() else { return child };
        if let Some(exit) = hold::read(&end, pid) {
            return exit;
        }
        if matches!(self.kind, Kind::Child(_))
            && let Some(orphan) = started(pid).ok().and_then(|ticks| Self::adopt(pid, ticks, None).ok().flatten())
        {
            tracing::warn!(pid, "the process that holds a trainer is gone: how the trainer ends will not be known");
            *self = orphan;
            return Box::pin(self.wait()).await;
        }
        // Kept across calls: who waits for other things as well calls again and again.
        ended(&end, pid, *self.until.get_or_insert_with(|| Instant::now() + END_DEADLINE)).await
    }

    /// Sends a signal to its process group.
    pub fn signal(&self, signal: Signal) {
        if let Err(error) = kill_process_group(self.pid, signal) {
            tracing::warn!(pid = self.pid.as_raw_nonzero().get(), %error, "could not signal a trainer");
        }
    }
}

/// How a process that is gone ended, by its holder's word, which may come a moment later.
async fn ended(end: &Path, pid: u32, until: Instant) -> Exit {
    loop {
        // Looked at before: the last thing a holder does is to write.
        let gone = hold::is_gone(end);
        match hold::read(end, pid) {
            Some(exit) => return exit,
            None if gone || Instant::now() >= until => return Exit::Unknown,
            None => sleep(LOOK).await,
        }
    }
}

/// The same where a daemon begins, and has nothing else to do yet.
pub fn ended_before(end: &Path, pid: u32) -> Exit {
    let until = std::time::Instant::now() + END_DEADLINE;
    loop {
        let gone = hold::is_gone(end);
        match hold::read(end, pid) {
            Some(exit) => return exit,
            None if gone || std::time::Instant::now() >= until => return Exit::Unknown,
            None => std::thread::park_timeout(LOOK),
        }
    }
}

/// The first line of what a process says, within a deadline.
fn first_line(mut out: File) -> io::Result<String> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let ready = poll(&mut [PollFd::new(&out, PollFlags::IN)], Some(&START_DEADLINE));
        if ready.is_ok_and(|ready| ready == 0) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was started in time"));
        }
        let mut byte = [0];
        if out.read(&mut byte)? == 0 {
            break;
        }
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
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
    let mut fields = after_name(stat)?;
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

/// The fields of `/proc/PID/stat` from the third on.
fn after_name(stat: &str) -> Option<impl Iterator<Item = &str>> {
    Some(stat.rsplit_once(')')?.1.split_ascii_whitespace())
}

/// What the kernel says of a process.
pub fn state(pid: u32) -> ProcessState {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    match after_name(&stat).and_then(|mut fields| fields.next()) {
        Some("T") => ProcessState::Stopped,
        Some("t") => ProcessState::Traced,
        Some("D") => ProcessState::Uninterruptible,
        _ => ProcessState::Alive,
    }
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
        let said = Some(FailureCause::Error { message: "no file".into() });
        assert_eq!(Exit::Code(1).cause(said.clone()), said);
        assert_eq!(Exit::Code(0).cause(None), None);
        assert_eq!(Exit::Code(101).cause(None), Some(FailureCause::ExitCode { code: 101 }));
        assert_eq!(Exit::Signal(9).cause(None), Some(FailureCause::Signal { signal: 9 }));
        assert_eq!(Exit::Unknown.cause(None), Some(FailureCause::WorkerLost), "its machine went with it");
    }

    #[tokio::test]
    async fn an_end_that_nobody_wrote_down_is_known_however_often_the_wait_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("60");
        let mut child = Process::spawn(command).unwrap();
        let ticks = started(child.id()).unwrap();
        let mut adopted = Process::adopt(child.id(), ticks, Some(folder.path().join("0.end"))).unwrap().unwrap();
        child.signal(Signal::KILL);
        child.wait().await;
        let began = Instant::now();
        // As a daemon does that looks at its trainers meanwhile.
        while tokio::time::timeout(END_DEADLINE / 4, adopted.wait()).await != Ok(Exit::Unknown) {
            assert!(began.elapsed() < END_DEADLINE * 2, "the wait has no end");
        }
    }

    #[tokio::test]
    async fn an_adopted_process_is_seen_to_end_and_a_later_one_is_not_taken_for_it() {
        let mut command = Command::new("sleep");
        command.arg("60");
        let mut child = Process::spawn(command).unwrap();
        let ticks = started(child.id()).unwrap();
        assert!(Process::adopt(child.id(), ticks + 1, None).unwrap().is_none());
        let mut adopted = Process::adopt(child.id(), ticks, None).unwrap().unwrap();
        adopted.signal(Signal::STOP);
        while state(child.id()) != ProcessState::Stopped {
            tokio::task::yield_now().await;
        }
        adopted.signal(Signal::KILL);
        assert_eq!(adopted.wait().await, Exit::Unknown);
        assert_eq!(child.wait().await, Exit::Signal(9));
        assert!(Process::adopt(child.id(), ticks, None).unwrap().is_none());
    }
}
