//! A worker that finds the coordinator that leads, again and again, as the agent does; its trainers go on meanwhile.

use crate::support::{Script, worker::Trainers};
use proto::{
    leader::{self, Named, Search, Term, Terms},
    v1::{Heartbeat, from_worker::Message as Out, to_worker::Message as In, workers_client::WorkersClient},
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Endpoint};

/// How soon a coordinator that does not answer is left.
const SILENCE: Duration = Duration::from_secs(1);

/// The worker `w`, with two slots. Dropped, it vanishes.
pub struct Follower {
    task: JoinHandle<()>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

/// What a session brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The leader's term.
    pub term: Option<u64>,
    /// The kinds of its orders.
    pub orders: Vec<&'static str>,
}

impl Follower {
    /// Looks for the leader among these coordinators.
    pub fn start(urls: &str, script: Script) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut search = Search::parse(urls).unwrap();
        let sessions = seen.clone();
        let task = tokio::spawn(async move {
            let mut trainers = Trainers::new(mpsc::channel(1).0, script);
            let mut terms = Terms::default();
            loop {
                let ended = session(search.current().to_owned(), &mut trainers, &mut terms, &sessions).await;
                let named = ended.as_ref().map_or(Named::Unsaid, leader::named);
                if !search.failed(named) {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        });
        Self { task, seen }
    }

    /// The sessions so far, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The newest leader's term.
    pub fn term(&self) -> Option<u64> {
        self.seen().last().and_then(|seen| seen.term)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One session; it returns what ended it, if that was a word of the coordinator's.
async fn session(url: String, trainers: &mut Trainers, terms: &mut Terms, seen: &Mutex<Vec<Seen>>) -> Option<Status> {
    let (outbox, messages) = mpsc::channel(64);
    trainers.outbox = outbox;
    trainers.register(terms.newest().map(|term| term.0)).await;
    let endpoint = Endpoint::from_shared(url).unwrap().connect_timeout(SILENCE);
    let endpoint = endpoint.http2_keep_alive_interval(SILENCE).keep_alive_timeout(SILENCE);
    let channel = endpoint.connect().await.ok()?;
    let mut client = WorkersClient::new(channel);
    let opening = client.session(ReceiverStream::new(messages));
    let mut orders = match tokio::time::timeout(2 * SILENCE, opening).await.ok()? {
        Ok(orders) => orders.into_inner(),
        Err(status) => return Some(status),
    };
    let mut beats = tokio::time::interval(Duration::from_millis(500));
    let mut known = false;
    loop {
        tokio::select! {
            order = orders.message() => {
                let order = match order {
                    Ok(order) => order?,
                    Err(status) => return Some(status),
                };
                terms.admit(order.term.map(Term)).ok()?;
                let order = order.message.unwrap();
                if let In::Registered(_) = order {
                    known = true;
                    seen.lock().unwrap().push(Seen { term: terms.newest().map(|term| term.0), orders: Vec::new() });
                    continue;
                }
                let kind = match &order {
                    In::StartTrainer(_) => "start",
                    In::SendPlan(_) => "plan",
                    In::StopTrainer(_) => "stop",
                    In::EndTrainer(_) => "end",
                    In::CommitManifest(_) => "commit",
                    In::Registered(_) => "registered",
                };
                seen.lock().unwrap().last_mut().unwrap().orders.push(kind);
                trainers.obey(order).await;
            }
            _ = beats.tick(), if known => trainers.say(Out::Heartbeat(Heartbeat {})).await,
        }
    }
}
