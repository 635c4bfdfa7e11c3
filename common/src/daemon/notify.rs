//! Words to the service manager: ready, what is going on, alive, ending. This is the protocol of sd_notify(3): datagrams to the
//! socket that `NOTIFY_SOCKET` names. Without that variable nothing is sent.
//!
//! It stands here because the crates for it read the environment at every call and know no abstract sockets.

use std::{
    env, fmt,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    process,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// What a process that is not the service itself must not inherit.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// How long a word may take: a manager that does not read holds nobody up for longer.
const SEND: Duration = Duration::from_millis(500);

/// The service manager; clones speak to the same one. By default there is none.
#[derive(Clone, Default)]
pub struct Manager(Option<Arc<Line>>);

struct Line {
    socket: UnixDatagram,
    /// How often a sign of life is due; absent without a watchdog.
    beat: Option<Duration>,
    last: Mutex<Option<Instant>>,
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Manager" } else { "Manager(none)" })
    }
}

impl Manager {
    /// The one that this process was told of. A socket that cannot be reached is warned of: the service is worth more than words
    /// about it.
    pub fn of_environment() -> Self {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let Some(socket) = set("NOTIFY_SOCKET") else { return Self::default() };
        let others = set("WATCHDOG_PID").is_some_and(|pid| pid != process::id().to_string());
        let limit = set("WATCHDOG_USEC").filter(|_| !others).and_then(|limit| limit.parse().ok());
        Self::at(&socket, limit.map(Duration::from_micros)).unwrap_or_else(|error| {
            tracing::warn!(socket, %error, "the service manager is not told how this service does");
            Self::default()
        })
    }

    /// The one that reads a socket (a path, or an abstract name behind `@`) and waits at most `limit` for a sign of life.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn at(socket: &str, limit: Option<Duration>) -> std::io::Result<Self> {
        let address = match socket.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(socket)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_write_timeout(Some(SEND))?;
        // With a loop that looks every half second it is in time for half of the limit, which is what managers advise.
        let beat = limit.map(|limit| limit / 3);
        Ok(Self(Some(Arc::new(Line { socket, beat, last: Mutex::new(None) }))))
    }

    /// The service does what it is there for.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", line(status)));
    }

    /// What `systemctl status` shows.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", line(status)));
    }

    /// The service ends.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=ends; trainers go on");
    }

    /// To be called by the loop whose life it proves, as often as it likes: what is due is sent.
    pub fn alive(&self) {
        if self.wait().is_some_and(|wait| wait.is_zero()) {
            self.send("WATCHDOG=1");
            if let Some(manager) = &self.0 {
                *manager.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            }
        }
    }

    /// Returns when the next sign of life is due; never without a watchdog. For a loop that would sleep longer than that.
    pub async fn due(&self) {
        match self.wait() {
            Some(wait) => tokio::time::sleep(wait).await,
            None => std::future::pending().await,
        }
    }

    fn wait(&self) -> Option<Duration> {
        let manager = self.0.as_ref()?;
        let beat = manager.beat?;
        let last = *manager.last.lock().unwrap_or_else(PoisonError::into_inner);
        Some(last.map_or(Duration::ZERO, |last| beat.saturating_sub(last.elapsed())))
    }

    fn send(&self, text: &str) {
        let Some(manager) = &self.0 else { return };
        if let Err(error) = manager.socket.send(text.as_bytes()) {
            tracing::warn!(%error, "the service manager does not listen");
        }
    }
}

/// One line of it: a second one would be another word.
fn line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> Option<String> {
        socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 512];
        socket.recv(&mut buffer).ok().map(|length| String::from_utf8(buffer[..length].to_vec()).unwrap())
    }

    #[test]
    fn words_arrive_one_a_line_and_signs_of_life_only_when_due() {
        let name = format!("llm2clip-notify-{}", process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let manager = Manager::at(&format!("@{name}"), Some(Duration::from_secs(3600))).unwrap();
        manager.ready("leads\nREADY=0");
        manager.alive();
        manager.alive();
        manager.stopping();
        let all: Vec<String> = std::iter::from_fn(|| heard(&socket)).collect();
        assert_eq!(
            all,
            ["READY=1\nSTATUS=leads READY=0", "WATCHDOG=1", "STOPPING=1\nSTATUS=ends; trainers go on"],
            "the second sign of life was not due"
        );
        assert!(Manager::at("/nowhere/notify", None).is_err());
    }

    #[tokio::test]
    async fn without_a_watchdog_nothing_is_ever_due() {
        let folder = env::temp_dir().join(format!("llm2clip-notify-{}.socket", process::id()));
        let socket = UnixDatagram::bind(&folder).unwrap();
        let manager = Manager::at(folder.to_str().unwrap(), None).unwrap();
        for manager in [manager, Manager::default()] {
            manager.alive();
            assert!(tokio::time::timeout(Duration::from_millis(1), manager.due()).await.is_err());
        }
        assert_eq!(heard(&socket), None);
        std::fs::remove_file(folder).unwrap();
    }
}
