//! The task of one trainer: it owns the process, its socket and its record, and outlives no command of the daemon.

use super::{
    connection::Connection,
    ipc::{Order, Report},
    log,
    process::{Exit, Process},
    record::TrainerRecord,
};
use common::ids::{Generation, Slot};
use rustix::process::Signal;
use std::{path::PathBuf, time::Duration};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
    time::{Instant, sleep_until},
};

/// How many commands may wait for a trainer's task.
const WAITING_COMMANDS: usize = 64;

/// What the supervisor tells.
#[derive(Debug)]
pub enum SupervisorEvent {
    /// A trainer reported something.
    Report {
        /// Its place.
        slot: Slot,
        /// Its process.
        pid: u32,
        /// What.
        report: Box<Report>,
    },
    /// A trainer's process is gone; nothing more comes from it.
    Ended(End),
}

/// The end of a trainer's process.
#[derive(Debug)]
pub struct End {
    /// Its place.
    pub slot: Slot,
    /// Its process.
    pub pid: u32,
    /// How it ended.
    pub exit: Exit,
    /// The end of its log, oldest line first.
    pub last_lines: Vec<String>,
}

#[derive(Debug)]
enum Command {
    Order(Order),
    Remember { generation: Generation, peer: Option<String> },
    End { grace: Duration },
}

/// The way to a trainer's task. Dropping it leaves the trainer running by itself.
#[derive(Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    /// The process.
    pub pid: u32,
    /// Its log.
    pub log: PathBuf,
}

impl Handle {
    /// Sends an order; what the trainer's present connection loses is sent again on the next one, as far as it matters.
    pub fn order(&self, order: Order) {
        self.command(Command::Order(order));
    }

    /// Writes down what a restarted daemon has to know.
    pub fn remember(&self, generation: Generation, peer: Option<String>) {
        self.command(Command::Remember { generation, peer });
    }

    /// Sends SIGTERM, and SIGKILL if the process is still there after the grace.
    pub fn end(&self, grace: Duration) {
        self.command(Command::End { grace });
    }

    fn command(&self, command: Command) {
        if let Err(error) = self.commands.try_send(command) {
            tracing::warn!(pid = self.pid, %error, "a command came too late for a trainer, or too many came at once");
        }
    }
}

/// All that belongs to one trainer.
pub struct Trainer {
    process: Process,
    listener: UnixListener,
    record: TrainerRecord,
    /// Where records lie.
    folder: PathBuf,
    events: mpsc::Sender<SupervisorEvent>,
    connection: Option<Connection>,
    /// The newest plan and the stop after it: told again on every connection.
    owed: Vec<Order>,
    /// When SIGKILL follows; absent while the process was not asked to end.
    kill_at: Option<Instant>,
}

impl Trainer {
    /// Begins to look after a process.
    pub fn watch(
        process: Process,
        listener: UnixListener,
        record: TrainerRecord,
        folder: PathBuf,
        events: mpsc::Sender<SupervisorEvent>,
    ) -> Handle {
        let (sender, commands) = mpsc::channel(WAITING_COMMANDS);
        let handle = Handle { commands: sender, pid: process.id(), log: record.log.clone() };
        let (connection, owed, kill_at) = (None, Vec::new(), None);
        tokio::spawn(Self { process, listener, record, folder, events, connection, owed, kill_at }.run(commands));
        handle
    }

    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let exit = loop {
            // Every branch may be dropped and begun again.
            tokio::select! {
                exit = self.process.wait() => break exit,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => self.connected(stream).await,
                    Err(error) => tracing::error!(slot = %self.record.slot, %error, "cannot accept a connection"),
                },
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                () = sleep_until(self.kill_at.unwrap_or_else(Instant::now)), if self.kill_at.is_some() => {
                    tracing::warn!(slot = %self.record.slot, pid = self.record.pid, "not ended in time, killing it");
                    self.kill_at = None;
                    self.process.signal(Signal::KILL);
                }
            }
        };
        self.ended(exit).await;
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Order(order) => self.order(order),
            Command::Remember { generation, peer } => {
                self.record.generation = generation;
                self.record.peer = peer;
                if let Err(error) = self.record.write(&self.folder) {
                    tracing::error!(slot = %self.record.slot, %error, "could not write the record of a trainer");
                }
            }
            Command::End { grace } => {
                self.process.signal(Signal::TERM);
                let kill_at = Instant::now() + grace;
                self.kill_at = Some(self.kill_at.map_or(kill_at, |earlier| earlier.min(kill_at)));
            }
        }
    }

    fn order(&mut self, order: Order) {
        match &order {
            Order::Plan(plan) => {
                self.owed = vec![order.clone()];
                if let Err(error) = log::name_rank(&self.record.log, plan.generation, plan.rank) {
                    tracing::warn!(log = %self.record.log.display(), %error, "could not name a rank's log");
                }
            }
            Order::Stop if !self.owed.contains(&order) => self.owed.push(order.clone()),
            Order::Stop | Order::CommitManifest { .. } => {}
        }
        self.send(order);
    }

    fn send(&mut self, order: Order) {
        if self.connection.as_ref().is_some_and(|connection| !connection.order(order)) {
            self.connection = None;
        }
    }

    async fn connected(&mut self, stream: UnixStream) {
        if let Some(before) = self.connection.take() {
            before.finish().await;
        }
        self.connection = Some(Connection::open(stream, self.record.slot, self.record.pid, self.events.clone()));
        for order in self.owed.clone() {
            self.send(order);
        }
    }

    /// Hands on the trainer's last words, then says that it is gone.
    async fn ended(mut self, exit: Exit) {
        if let Ok(listener) = self.listener.into_std() {
            // It may have connected and ended before anybody looked.
            while let Ok(Ok(stream)) = listener.accept().map(|(stream, _)| stream).map(prepare) {
                if let Some(before) = self.connection.take() {
                    before.finish().await;
                }
                self.connection =
                    Some(Connection::open(stream, self.record.slot, self.record.pid, self.events.clone()));
            }
        }
        if let Some(connection) = self.connection {
            connection.finish().await;
        }
        let TrainerRecord { slot, pid, log, socket, .. } = self.record;
        TrainerRecord::remove(&self.folder, slot);
        // The next trainer of the slot replaces it anyway.
        let _ = std::fs::remove_file(socket);
        let event = SupervisorEvent::Ended(End { slot, pid, exit, last_lines: log::last_lines(&log) });
        // Nobody listens when the daemon is ending as well.
        let _ = self.events.send(event).await;
    }
}

fn prepare(stream: std::os::unix::net::UnixStream) -> std::io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
