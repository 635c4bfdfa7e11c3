//! Waits for a file or a program to say something, woken by the kernel.

use rustix::fs::inotify;
use std::{
    io::{BufRead as _, BufReader},
    mem::MaybeUninit,
    os::fd::AsFd as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Waits until `check` sees what it waits for in a file of `folder`; the folder is made if need be.
///
/// # Panics
/// When that has not happened within `deadline`; `what` says what was waited for.
pub fn wait_for<T>(folder: &Path, what: &str, deadline: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    std::fs::create_dir_all(folder).unwrap();
    let began = Instant::now();
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
    let changes = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&watch, folder, changes).unwrap();
    loop {
        if let Some(found) = check() {
            return found;
        }
        let left = deadline.checked_sub(began.elapsed()).unwrap_or_else(|| panic!("{what}: not within {deadline:?}"));
        let timeout = rustix::time::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut descriptors = [rustix::event::PollFd::from_borrowed_fd(watch.as_fd(), rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut descriptors, Some(&timeout)).unwrap();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&watch, &mut buffer);
        while events.next().is_ok() {}
    }
}

/// Waits until a program, which is ended then, says a line with this in it.
///
/// # Panics
/// When it ends before.
pub fn wait_for_line(mut command: Command, text: &str) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let found = lines.map_while(Result::ok).any(|line| line.contains(text));
    // It may have ended by itself.
    let _ = child.kill();
    child.wait().unwrap();
    assert!(found, "it ended, and no line said `{text}`");
}
