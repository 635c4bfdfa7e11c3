//! The task of one trainer: it owns the process, its socket and its record, looks at it from outside, and outlives no command of
//! the daemon.

use super::{
    connection::Connection,
    ipc::{Order, Report},
    log,
    memory::{Memory, MemoryWatch},
    process::{self, Exit, Process},
    pulse,
    record::TrainerRecord,
    stacks,
};
use common::{
    ids::{Generation, Slot},
    pulse::Pulse,
};
use rustix::process::Signal;
use std::{path::PathBuf, time::Duration};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

/// How many commands may wait for a trainer's task.
const WAITING_COMMANDS: usize = 64;
/// How often a trainer is looked at from outside.
const LOOK: Duration = Duration::from_secs(1);
/// How long keeping the stacks of a stuck trainer may take before it is killed without them.
const STACKS_DEADLINE: Duration = Duration::from_secs(12);

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
    /// A trainer has got no further for a while, or goes on again after that.
    Pulse {
        /// Its place.
        slot: Slot,
        /// Its process.
        pid: u32,
        /// Where it stands.
        pulse: Box<Pulse>,
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
    /// What is known of its memory.
    pub memory: Memory,
    /// Where its threads' stacks were kept before it was ended as stuck.
    pub stacks: Option<PathBuf>,
}

#[derive(Debug)]
enum Command {
    Order(Order),
    Remember { generation: Generation, peer: Option<String> },
    End { grace: Duration },
    EndStuck,
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

    /// Keeps what its threads do beside its log, then sends SIGKILL.
    pub fn end_stuck(&self) {
        self.command(Command::EndStuck);
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
    /// Its own record of where it stands.
    pulse: PathBuf,
    /// Whether it was quiet when it was last looked at.
    quiet: bool,
    memory: MemoryWatch,
    /// Keeps its stacks; absent when it is not stuck.
    stacks: Option<JoinHandle<Option<PathBuf>>>,
    kept_stacks: Option<PathBuf>,
    /// Whether SIGKILL was sent from here.
    killed: bool,
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
        (folder, pulse): (PathBuf, PathBuf),
        events: mpsc::Sender<SupervisorEvent>,
    ) -> Handle {
        let (sender, commands) = mpsc::channel(WAITING_COMMANDS);
        let handle = Handle { commands: sender, pid: process.id(), log: record.log.clone() };
        let trainer = Self {
            memory: MemoryWatch::begin(process.id()),
            process,
            listener,
            record,
            folder,
            pulse,
            quiet: false,
            stacks: None,
            kept_stacks: None,
            killed: false,
            events,
            connection: None,
            owed: Vec::new(),
            kill_at: None,
        };
        tokio::spawn(trainer.run(commands));
        handle
    }

    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
                    self.kill();
                }
                kept = join(&mut self.stacks) => {
                    self.stacks = None;
                    self.kept_stacks = kept;
                    self.kill();
                }
                _ = looks.tick() => self.look().await,
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
            Command::EndStuck if self.stacks.is_none() && !self.killed => {
                let (pid, path) = (self.record.pid, stacks::path(&self.record.log, self.record.pid));
                tracing::warn!(slot = %self.record.slot, pid, stacks = %path.display(), "stuck: keeping its stacks, then killing it");
                self.kill_at = Some(Instant::now() + STACKS_DEADLINE);
                self.stacks = Some(tokio::task::spawn_blocking(move || {
                    let kept = stacks::keep(pid, &path);
                    kept.inspect_err(|error| tracing::warn!(pid, %error, "could not keep the stacks of a trainer"))
                        .ok()?;
                    Some(path)
                }));
            }
            Command::EndStuck => {}
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

    fn kill(&mut self) {
        self.killed = true;
        self.process.signal(Signal::KILL);
    }

    /// Looks at its memory and its record. Says where it stands while it is quiet, and once when it goes on.
    async fn look(&mut self) {
        self.memory.look();
        let Ok(Some(mark)) = pulse::read(&self.pulse) else { return };
        let pulse = mark.pulse(pulse::now_ns(), process::state(self.record.pid));
        let before = std::mem::replace(&mut self.quiet, pulse.quiet.is_some());
        if self.quiet || before {
            let (slot, pid, pulse) = (self.record.slot, self.record.pid, Box::new(pulse));
            // Nobody listens when the daemon is ending.
            let _ = self.events.send(SupervisorEvent::Pulse { slot, pid, pulse }).await;
        }
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
        if let Some(stacks) = self.stacks {
            // It ended by itself meanwhile; what was kept of it is worth something still.
            self.kept_stacks = stacks.await.ok().flatten();
        }
        let TrainerRecord { slot, pid, log, socket, .. } = self.record;
        TrainerRecord::remove(&self.folder, slot);
        // The next trainer of the slot replaces it anyway.
        let _ = std::fs::remove_file(socket);
        let _ = std::fs::remove_file(&self.pulse);
        let last_lines = log::last_lines(&log);
        let memory = self.memory.at_end(exit, self.killed, &last_lines);
        let event = SupervisorEvent::Ended(End { slot, pid, exit, last_lines, memory, stacks: self.kept_stacks });
        // Nobody listens when the daemon is ending as well.
        let _ = self.events.send(event).await;
    }
}

/// Waits for what keeps stacks; for ever when nothing does.
async fn join(stacks: &mut Option<JoinHandle<Option<PathBuf>>>) -> Option<PathBuf> {
    match stacks {
        Some(stacks) => stacks.await.ok().flatten(),
        None => std::future::pending().await,
    }
}

fn prepare(stream: std::os::unix::net::UnixStream) -> std::io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
