//! Workers that do not work: each has a session, sends heartbeats, and says of its one trainer what a real one would.

use super::super::error::CliError;
use common::status::{FailureCause, Inventory};
use proto::v1::{
    FromWorker, Heartbeat, Register, ToWorker, TrainerEnded, TrainerReady, TrainerRef, from_worker::Message as Out,
    to_worker::Message as In, workers_client::WorkersClient,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

/// How many sessions share a connection. A server allows 200.
const SESSIONS: u32 = 100;
/// How long a worker that died is away.
const AWAY: Duration = Duration::from_secs(20);
/// How many messages may wait for a connection.
const QUEUE: usize = 8;

/// What the workers have seen together.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// How many sessions were accepted so far.
    pub(super) registered: u32,
    /// How many plans of the newest generation are there.
    pub(super) planned: u32,
    generation: u64,
    /// Whose trainers have plans of the newest generation.
    ranks: BTreeSet<u32>,
    heartbeats: u64,
    lease: Duration,
    deaths: usize,
    /// Deaths of workers of the job that are not answered by a new plan, oldest first.
    unanswered: Vec<Instant>,
    /// Seconds from such a death to the first plan of a later generation.
    answered: Vec<f64>,
}

#[derive(Debug, Default)]
struct Board {
    seen: Mutex<Seen>,
    changed: Notify,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All workers.
pub(super) struct Fleet {
    board: Arc<Board>,
    /// Ends a worker's session when its number changes.
    strikes: BTreeMap<u32, watch::Sender<u64>>,
    connections: usize,
}

impl Fleet {
    /// Connects so many workers.
    pub(super) async fn start(url: &str, workers: u32) -> Result<Self, CliError> {
        let board = Arc::new(Board::default());
        let mut strikes = BTreeMap::new();
        let mut channels: Vec<Channel> = Vec::new();
        for number in 0..workers {
            if number % SESSIONS == 0 {
                let endpoint = Endpoint::from_shared(url.to_owned()).map_err(CliError::contact)?;
                channels.push(endpoint.tcp_nodelay(true).connect().await.map_err(CliError::contact)?);
            }
            let channel = channels.last().expect("the first number opened one").clone();
            let (strike, struck) = watch::channel(0);
            strikes.insert(number, strike);
            tokio::spawn(Worker { number, channel, board: board.clone(), trainer: None }.live(struck));
        }
        Ok(Self { board, strikes, connections: channels.len() })
    }

    /// Waits for something to be so.
    pub(super) async fn until(
        &self,
        longest: Duration,
        what: &str,
        so: impl Fn(&Seen) -> bool,
    ) -> Result<(), CliError> {
        let waiting = async {
            loop {
                let changed = self.board.changed.notified();
                if so(&self.board.lock()) {
                    return;
                }
                // A change between the look and the wait is seen a moment later.
                let _ = timeout(Duration::from_millis(200), changed).await;
            }
        };
        let late = |_| CliError::new(1, format!("after {} s it is still not so that {what}", longest.as_secs()));
        timeout(longest, waiting).await.map_err(late)
    }

    /// A worker of the job dies.
    pub(super) fn strike_a_rank(&self) {
        let mut seen = self.board.lock();
        let Some(victim) = seen.ranks.iter().nth(seen.answered.len() % seen.ranks.len().max(1)).copied() else {
            return;
        };
        seen.unanswered.push(Instant::now());
        drop(seen);
        self.strike(victim);
    }

    /// Another worker dies.
    pub(super) fn strike_another(&self) {
        let seen = self.board.lock();
        let others = self.strikes.keys().filter(|number| !seen.ranks.contains(number));
        let nth = seen.deaths * 7919 % (self.strikes.len() - seen.ranks.len()).max(1);
        let victim = others.copied().nth(nth);
        drop(seen);
        if let Some(victim) = victim {
            self.strike(victim);
        }
    }

    fn strike(&self, victim: u32) {
        self.board.lock().deaths += 1;
        if let Some(strike) = self.strikes.get(&victim) {
            strike.send_modify(|number| *number += 1);
        }
    }

    pub(super) fn heartbeats(&self) -> u64 {
        self.board.lock().heartbeats
    }

    pub(super) fn connections(&self) -> usize {
        self.connections
    }

    pub(super) fn lease(&self) -> Duration {
        self.board.lock().lease
    }

    /// Seconds from each death of a worker of the job to the next plan, and how many workers died in all.
    pub(super) fn plans_after_deaths(&self) -> (Vec<f64>, usize) {
        let seen = self.board.lock();
        (seen.answered.clone(), seen.deaths)
    }
}

struct Worker {
    number: u32,
    channel: Channel,
    board: Arc<Board>,
    /// Its trainer; absent while none runs.
    trainer: Option<TrainerRef>,
}

impl Worker {
    /// Session after session.
    async fn live(mut self, mut struck: watch::Receiver<u64>) {
        // Not all at once.
        sleep(Duration::from_millis(u64::from(self.number % 2000))).await;
        loop {
            struck.borrow_and_update();
            let (told, messages) = mpsc::channel(QUEUE);
            tokio::select! {
                biased;
                changed = struck.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // Its trainer dies with it.
                    self.trainer = None;
                    sleep(AWAY).await;
                }
                () = self.session(told, messages) => sleep(Duration::from_secs(1)).await,
            }
        }
    }

    async fn session(&mut self, told: mpsc::Sender<FromWorker>, messages: mpsc::Receiver<FromWorker>) {
        let inventory = Inventory {
            host: format!("bench-{}", self.number),
            trainers: 1,
            gpus: Vec::new(),
            cores: 1,
            memory_bytes: 1 << 30,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let trainers = self.trainer.clone().map(|trainer| self.ready(trainer)).into_iter().collect();
        let inventory = serde_json::to_string(&inventory).expect("an inventory is JSON");
        let worker = format!("bench-{:05}", self.number);
        let (lowest_protocol, protocol) = proto::version::SPOKEN;
        let (instance, incarnation) = (worker.clone(), 1);
        let register =
            Register { worker, inventory, trainers, term: None, lowest_protocol, protocol, instance, incarnation };
        // There is room: nothing was sent yet.
        let _ = told.try_send(FromWorker { message: Some(Out::Register(register)) });
        let mut client = WorkersClient::new(self.channel.clone()).max_decoding_message_size(64 << 20);
        let Ok(orders) = client.session(ReceiverStream::new(messages)).await else { return };
        let mut orders = orders.into_inner();
        let Ok(Some(ToWorker { message: Some(In::Registered(registered)), .. })) = orders.message().await else {
            return;
        };
        let lease = Duration::from_millis(registered.lease_ms);
        {
            let mut seen = self.board.lock();
            seen.registered += 1;
            seen.lease = lease;
        }
        self.board.changed.notify_waiters();
        self.obey(&mut orders, &told, lease).await;
    }

    async fn obey(&mut self, orders: &mut Streaming<ToWorker>, told: &mpsc::Sender<FromWorker>, lease: Duration) {
        let every = lease / 3;
        let first = every.mul_f64(f64::from(self.number % 1000) / 1000.0);
        let mut beats = interval_at(Instant::now() + first, every);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                biased;
                order = orders.message() => match order {
                    Ok(Some(ToWorker { message: Some(order), .. })) => self.answer(order),
                    _ => return,
                },
                _ = beats.tick() => {
                    self.board.lock().heartbeats += 1;
                    Some(Out::Heartbeat(Heartbeat {}))
                }
            };
            if let Some(message) = message
                && told.send(FromWorker { message: Some(message) }).await.is_err()
            {
                return;
            }
        }
    }

    fn answer(&mut self, order: In) -> Option<Out> {
        match order {
            In::StartTrainer(start) => {
                self.trainer = start.trainer;
                Some(Out::TrainerReady(self.ready(self.trainer.clone()?)))
            }
            In::SendPlan(send) => {
                self.planned(send.trainer?.generation);
                None
            }
            In::EndTrainer(end) => {
                self.trainer = None;
                let cause = serde_json::to_string(&FailureCause::Signal { signal: 15 }).ok();
                let trainer = end.trainer;
                Some(Out::TrainerEnded(TrainerEnded {
                    trainer,
                    cause,
                    pid: 1,
                    last_lines: Vec::new(),
                    log: String::new(),
                }))
            }
            In::StopTrainer(_) | In::CommitManifest(_) | In::Registered(_) => None,
        }
    }

    fn ready(&self, trainer: TrainerRef) -> TrainerReady {
        TrainerReady { trainer: Some(trainer), pid: 1, peer: format!("10.0.0.1:{}", self.number) }
    }

    fn planned(&self, generation: u64) {
        let mut seen = self.board.lock();
        if generation > seen.generation {
            seen.generation = generation;
            seen.planned = 0;
            seen.ranks.clear();
            let waits: Vec<f64> = seen.unanswered.drain(..).map(|death| death.elapsed().as_secs_f64()).collect();
            seen.answered.extend(waits);
        }
        if generation == seen.generation && seen.ranks.insert(self.number) {
            seen.planned += 1;
        }
        drop(seen);
        self.board.changed.notify_waiters();
    }
}
