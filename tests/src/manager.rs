//! A service manager's end of the notification socket.

use std::{
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// Hears what a service says.
pub struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    /// Listens on a socket in a folder.
    pub fn new(folder: &Path, name: &str) -> Self {
        let path = folder.join(name);
        Self { socket: UnixDatagram::bind(&path).unwrap(), path }
    }

    /// Has a command report here, and say every so often that it lives.
    pub fn over<'a>(&self, command: &'a mut Command, watchdog: Duration) -> &'a mut Command {
        command.env("NOTIFY_SOCKET", &self.path).env("WATCHDOG_USEC", watchdog.as_micros().to_string())
    }

    /// The next message; nothing when there is none in time.
    pub fn heard(&self, within: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(within)).unwrap();
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
    }

    /// The next message that begins so; others are passed over.
    ///
    /// # Panics
    /// When there is none within `deadline`.
    pub fn wait_for(&self, beginning: &str, deadline: Duration) -> String {
        let began = Instant::now();
        let mut others = Vec::new();
        while let Some(left) = deadline.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
            match self.heard(left) {
                Some(message) if message.starts_with(beginning) => return message,
                Some(message) => others.push(message),
                None => break,
            }
        }
        panic!("no `{beginning}` within {deadline:?}, but {others:?}");
    }

    /// Reads away what waits.
    pub fn clear(&self) {
        while self.heard(Duration::from_millis(1)).is_some() {}
    }
}
