//! A worker of one session; its trainers do as the script says.

use super::share;
use common::{
    manifest::Manifest,
    plan::TrainPlan,
    status::{FailureCause, Inventory},
};
use proto::v1::{
    CheckpointCommitted, CheckpointWritten, FromWorker, Heartbeat, Register, StageFinished, TrainerEnded, TrainerReady,
    TrainerRef, from_worker::Message as Out, to_worker::Message as In, workers_client::WorkersClient,
};
use std::{collections::BTreeMap, time::Duration};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;

/// What trainers do with a plan of the stage `clip`; every other stage they finish at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Script {
    /// Write the checkpoint of step 10, wait for its commit, finish.
    Train,
    /// Rank 1 is killed by signal 9.
    Die,
    /// Work until stopped; then as `Train`, with step 6.
    Wait,
}

/// A worker with two slots.
pub struct FakeWorker(JoinHandle<()>);

impl FakeWorker {
    /// The worker `w`.
    pub async fn start(url: &str, script: Script) -> Self {
        Self::start_as(url, "w", script).await
    }

    pub async fn start_as(url: &str, id: &str, script: Script) -> Self {
        let (outbox, messages) = mpsc::channel(64);
        let mut trainers = Trainers { id: id.to_owned(), ..Trainers::new(outbox, script) };
        trainers.register(None).await;
        let mut client = WorkersClient::connect(url.to_owned()).await.unwrap();
        let mut orders = client.session(ReceiverStream::new(messages)).await.unwrap().into_inner();
        let Some(In::Registered(registered)) = orders.message().await.unwrap().unwrap().message else {
            panic!("the first reply is not `registered`");
        };
        let mut beats = tokio::time::interval(Duration::from_millis(registered.lease_ms / 3));
        Self(tokio::spawn(async move {
            loop {
                tokio::select! {
                    order = orders.message() => match order {
                        Ok(Some(order)) => trainers.obey(order.message.unwrap()).await,
                        _ => return,
                    },
                    _ = beats.tick() => trainers.say(Out::Heartbeat(Heartbeat {})).await,
                }
            }
        }))
    }

    /// Vanishes without a word.
    pub fn vanish(self) {
        self.0.abort();
    }
}

/// The trainers of a worker; they outlive its sessions.
pub struct Trainers {
    id: String,
    pub outbox: mpsc::Sender<FromWorker>,
    script: Script,
    plans: BTreeMap<u32, TrainPlan>,
    living: BTreeMap<u32, TrainerReady>,
}

impl Trainers {
    pub fn new(outbox: mpsc::Sender<FromWorker>, script: Script) -> Self {
        Self { id: "w".to_owned(), outbox, script, plans: BTreeMap::new(), living: BTreeMap::new() }
    }

    /// Says who this is, and which trainers live.
    pub async fn register(&self, term: Option<u64>) {
        let inventory = Inventory {
            host: "h".into(),
            trainers: 2,
            gpus: Vec::new(),
            cores: 2,
            memory_bytes: 1 << 30,
            version: "0".into(),
        };
        let inventory = serde_json::to_string(&inventory).unwrap();
        let trainers = self.living.values().cloned().collect();
        let (worker, instance) = (self.id.clone(), self.id.clone());
        let (lowest_protocol, protocol) = proto::version::SPOKEN;
        let incarnation = 1;
        let register = Register { worker, inventory, trainers, term, lowest_protocol, protocol, instance, incarnation };
        self.say(Out::Register(register)).await;
    }

    pub async fn say(&self, message: Out) {
        // The coordinator may be gone by now.
        let _ = self.outbox.send(FromWorker { message: Some(message) }).await;
    }

    pub async fn obey(&mut self, order: In) {
        match order {
            In::StartTrainer(start) => {
                let trainer = start.trainer.unwrap();
                let ready = TrainerReady {
                    pid: 100 + trainer.slot,
                    peer: format!("127.0.0.1:{}", trainer.slot + 1),
                    trainer: Some(trainer.clone()),
                };
                self.living.insert(trainer.slot, ready.clone());
                self.say(Out::TrainerReady(ready)).await;
            }
            In::SendPlan(send) => {
                let plan: TrainPlan = serde_json::from_str(&send.plan).unwrap();
                let trainer = send.trainer.unwrap();
                self.plans.insert(trainer.slot, plan.clone());
                self.work(trainer, &plan).await;
            }
            In::StopTrainer(stop) => self.write(stop.trainer.unwrap(), 6).await,
            In::CommitManifest(commit) => {
                let manifest: Manifest = serde_json::from_str(&commit.manifest).unwrap();
                assert_eq!(manifest.parts.len(), self.plans.len());
                let (trainer, step) = (commit.trainer.unwrap(), commit.step);
                self.say(Out::CheckpointCommitted(CheckpointCommitted { trainer: Some(trainer.clone()), step })).await;
                for slot in self.plans.keys() {
                    self.finish(TrainerRef { slot: *slot, ..trainer.clone() }, step == 6).await;
                }
            }
            In::EndTrainer(end) => {
                let trainer = end.trainer.unwrap();
                self.living.remove(&trainer.slot);
                self.ended(trainer, None).await;
            }
            In::Registered(_) => panic!("registered twice"),
        }
    }

    async fn work(&self, trainer: TrainerRef, plan: &TrainPlan) {
        match (plan.stage, self.script) {
            (0, _) => self.finish(trainer, false).await,
            (_, Script::Train) => self.write(trainer, 10).await,
            (_, Script::Die) if plan.rank.0 == 1 => {
                self.ended(trainer, Some(FailureCause::Signal { signal: 9 })).await;
            }
            (_, Script::Die | Script::Wait) => {}
        }
    }

    async fn write(&self, trainer: TrainerRef, step: u64) {
        let rank = self.plans[&trainer.slot].rank;
        let share = serde_json::to_string(&share(rank)).unwrap();
        self.say(Out::CheckpointWritten(CheckpointWritten { trainer: Some(trainer), rank: rank.0, step, share })).await;
    }

    async fn finish(&self, trainer: TrainerRef, stopped: bool) {
        let rank = self.plans[&trainer.slot].rank.0;
        let summary = if rank == 0 { r#"{"vectors": 9}"#.to_owned() } else { String::new() };
        self.say(Out::StageFinished(StageFinished { trainer: Some(trainer), rank, summary, stopped })).await;
    }

    async fn ended(&self, trainer: TrainerRef, cause: Option<FailureCause>) {
        let pid = 100 + trainer.slot;
        let cause = cause.map(|cause| serde_json::to_string(&cause).unwrap());
        let last_lines = vec!["the last line".to_owned()];
        let ended = TrainerEnded { trainer: Some(trainer), cause, pid, last_lines, log: "/logs/0.log".into() };
        self.say(Out::TrainerEnded(ended)).await;
    }
}
