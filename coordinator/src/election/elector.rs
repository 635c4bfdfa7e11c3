//! The shell around the decisions: one loop that hears of the key, of its own tries and renewals, and of time.

use super::{
    decide::{self, Action, Event, Leader, Reason, State, Timing},
    record::{self, KEY},
    seat::{Office, Seat, Seats},
};
use crate::{
    runtime::{Authority, Runtime, RuntimeConfig, RuntimeError},
    store::{Change, Fence, LeaseId, Put, Revision, Store, StoreError},
};
use common::daemon::backoff::{Backoff, spread_of};
use proto::leader::Term;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

/// How many events may wait.
const EVENTS: usize = 64;
/// Waits between two looks at a store that fails, and between two leaderships that ended soon.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How long one waits who could not stand because of the store.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the work of a deposed leader may take to end by itself.
const STEP_DOWN: Duration = Duration::from_secs(1);
/// How long a leader that is told to end may take to store what it has put off, and then to give its lease back.
const FAREWELL: Duration = Duration::from_secs(2);

/// Who stands for election.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Where others reach this coordinator.
    pub url: String,
    /// Times of its leaderships.
    pub timing: Timing,
    /// Settings of the loop that a leader runs.
    pub runtime: RuntimeConfig,
}

/// One who would lead.
pub struct Elector<S> {
    store: Arc<S>,
    identity: Identity,
    began: Instant,
    state: State,
    seat: watch::Sender<Seat>,
    work: Option<Work>,
    events: mpsc::Sender<Event>,
    heard: mpsc::Receiver<Event>,
    /// Before the next try to lead.
    pause: Duration,
    backoff: Backoff,
}

/// The leader's work.
struct Work {
    since: Instant,
    authority: Authority,
    token: CancellationToken,
    task: JoinHandle<()>,
}

impl<S: Store> Elector<S> {
    /// Stands by; nothing happens until [`Elector::run`] is called.
    pub fn new(store: S, identity: Identity) -> (Self, Seats) {
        let (seat, seats) = watch::channel(Seat::Standby { leader: None });
        let (events, heard) = mpsc::channel(EVENTS);
        let elector = Self {
            store: Arc::new(store),
            identity,
            began: Instant::now(),
            state: State::new(),
            seat,
            work: None,
            events,
            heard,
            pause: Duration::ZERO,
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
        };
        (elector, Seats::of(seats))
    }

    /// Leads whenever it can, until the token is cancelled; then it gives its lease back.
    pub async fn run(mut self, token: CancellationToken) {
        let observer = observe(self.store.clone(), self.events.clone(), spread_of(&self.identity.url));
        let observer = tokio::spawn(token.clone().run_until_cancelled_owned(observer));
        loop {
            let wake = self.state.wake().map(|wake| self.began + wake);
            let event = tokio::select! {
                biased; // An end, then time, then what is heard: nothing that comes too late goes before the clock.
                () = token.cancelled() => break,
                // Of a leader, the loop of its work says that it lives.
                () = self.identity.runtime.manager.due(), if !self.works() => {
                    self.identity.runtime.manager.alive();
                    continue;
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => Event::Tick,
                event = self.heard.recv() => match event {
                    Some(event) => event,
                    None => break,
                },
            };
            self.handle(event).await;
        }
        // The token ended it, or will.
        observer.abort();
        self.leave().await;
    }

    fn works(&self) -> bool {
        matches!(*self.seat.borrow(), Seat::Leading(_))
    }

    async fn handle(&mut self, event: Event) {
        let state = std::mem::replace(&mut self.state, State::new());
        let (state, actions) = decide::decide(state, event, self.began.elapsed(), self.identity.timing);
        if let (State::Leading { until, .. }, Some(work)) = (&state, &self.work) {
            work.authority.extend(*until);
        }
        self.state = state;
        for action in actions {
            self.act(action).await;
        }
        self.show();
    }

    /// Has the API name the leader. A leader's own work says when it leads.
    fn show(&self) {
        let State::Standby { leader, .. } = &self.state else { return };
        let leader = leader.as_ref().and_then(|leader| leader.url.clone());
        self.seat.send_if_modified(|seat| {
            if matches!(seat, Seat::Standby { leader: shown } if *shown == leader) {
                return false;
            }
            tracing::info!(leader = leader.as_deref().unwrap_or("nobody"), "stands by");
            *seat = Seat::Standby { leader };
            true
        });
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Try => self.stand(),
            Action::Lead(term) => self.lead(term),
            Action::Renew(lease) => self.renew(lease),
            Action::StepDown(reason) => self.step_down(reason).await,
            Action::GiveBack(lease) => {
                let store = self.store.clone();
                // What cannot be given back lapses.
                tokio::spawn(async move { store.revoke(lease).await });
            }
        }
    }

    /// A try to lead, and, where it fails, another look at the key.
    fn stand(&mut self) {
        let wait = std::mem::take(&mut self.pause);
        let spread = spread_of(&self.identity.url);
        let value = record::encode(&self.identity.url);
        let (store, events, began, ttl) =
            (self.store.clone(), self.events.clone(), self.began, self.identity.timing.ttl);
        tokio::spawn(async move {
            sleep(wait).await;
            let asked = began.elapsed();
            match stand(store.as_ref(), ttl, value).await {
                Ok((term, lease)) => {
                    // An elector that is gone leaves the lease to lapse.
                    let _ = events.send(Event::Won { term, lease, asked }).await;
                    return;
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => {
                    tracing::warn!(%error, "could not stand for election");
                    sleep(PAUSE).await;
                }
            }
            let _ = events.send(Event::NotWon).await;
            look(store.as_ref(), &events, spread).await;
        });
    }

    fn lead(&mut self, term: Term) {
        tracing::info!(%term, url = self.identity.url, "leads");
        let authority = Authority::limited(self.began);
        if let State::Leading { until, .. } = self.state {
            authority.extend(until);
        }
        let token = CancellationToken::new();
        let fenced = self.store.fenced(Fence { key: KEY.to_owned(), revision: Revision(term.0) });
        let (config, seat, events) = (self.identity.runtime.clone(), self.seat.clone(), self.events.clone());
        let (ours, ending) = (authority.clone(), token.clone());
        let task = tokio::spawn(async move {
            let work = work(fenced, config, Appointment { term, authority: ours, seat }, ending);
            if let Err(error) = work.await {
                tracing::warn!(%term, %error, "the leader's work ended");
            }
            let _ = events.send(Event::WorkEnded(term)).await;
        });
        self.work = Some(Work { since: Instant::now(), authority, token, task });
    }

    fn renew(&self, lease: LeaseId) {
        let (store, events, asked) = (self.store.clone(), self.events.clone(), self.began.elapsed());
        tokio::spawn(async move {
            let event = match store.keep_alive(lease).await {
                Ok(()) => Event::Renewed { lease, asked },
                Err(StoreError::NoLease(_)) => Event::LeaseGone(lease),
                Err(error) => {
                    tracing::warn!(%error, "the leader's lease could not be kept alive");
                    return;
                }
            };
            let _ = events.send(event).await;
        });
    }

    /// Nothing is done or answered in the leader's name once this returns.
    async fn step_down(&mut self, reason: Reason) {
        tracing::warn!(?reason, "steps down; trainers go on");
        let Some(mut work) = self.work.take() else { return };
        work.authority.end();
        work.token.cancel();
        if timeout(STEP_DOWN, &mut work.task).await.is_err() {
            work.task.abort();
        }
        if work.since.elapsed() > BACKOFF.1 {
            self.backoff.reset();
        } else {
            self.pause = self.backoff.next(spread_of(&self.identity.url));
        }
        self.seat.send_replace(Seat::Standby { leader: None });
    }

    /// The orderly end: what was put off is stored, and the next leader need not wait.
    async fn leave(mut self) {
        let State::Leading { lease, .. } = self.state else { return };
        if let Some(mut work) = self.work.take() {
            work.token.cancel();
            if timeout(FAREWELL, &mut work.task).await.is_err() {
                work.task.abort();
            }
            work.authority.end();
        }
        self.seat.send_replace(Seat::Standby { leader: None });
        // What cannot be given back lapses.
        let _ = timeout(FAREWELL, self.store.revoke(lease)).await;
    }
}

struct Appointment {
    term: Term,
    authority: Authority,
    seat: watch::Sender<Seat>,
}

/// The leader's work: load all jobs, take the seat, run the loop.
async fn work<S: Store>(
    store: S,
    config: RuntimeConfig,
    appointment: Appointment,
    token: CancellationToken,
) -> Result<(), RuntimeError> {
    let Appointment { term, authority, seat } = appointment;
    let Some(opened) = token.run_until_cancelled(Runtime::open(store, config)).await else { return Ok(()) };
    let (handle, runtime) = opened?;
    authority.check()?;
    if token.is_cancelled() {
        return Ok(());
    }
    seat.send_replace(Seat::Leading(Office { handle, term: Some(term), authority: authority.clone() }));
    runtime.under(authority).run(token).await
}

/// Asks for a lease, then puts the key if it is nobody's.
async fn stand<S: Store>(store: &S, ttl: Duration, value: Vec<u8>) -> Result<(Term, LeaseId), StoreError> {
    let lease = store.grant(ttl).await?;
    let put = Put { key: KEY.to_owned(), value, expected: None, lease: Some(lease) };
    match store.put_if(put).await {
        Ok(revision) => Ok((Term(revision.0), lease)),
        Err(error) => {
            // What cannot be given back lapses.
            let _ = store.revoke(lease).await;
            Err(error)
        }
    }
}

/// Says what the key says, as soon as the store can be read. It ends with the elector.
async fn look<S: Store>(store: &S, events: &mpsc::Sender<Event>, spread: f64) {
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    while !events.is_closed() {
        match store.list(KEY).await {
            Ok(listing) => {
                let leader = listing.entries.iter().find(|entry| entry.key == KEY).map(record::leader);
                let _ = events.send(Event::Key { leader, at: Term(listing.revision.0) }).await;
                return;
            }
            Err(error) => tracing::warn!(%error, "cannot see who leads"),
        }
        sleep(backoff.next(spread)).await;
    }
}

/// Says what becomes of the key, for ever.
async fn observe<S: Store>(store: Arc<S>, events: mpsc::Sender<Event>, spread: f64) {
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    loop {
        match follow(store.as_ref(), &events).await {
            Ok(()) => backoff.reset(),
            Err(error) => tracing::warn!(%error, "cannot see who leads"),
        }
        sleep(backoff.next(spread)).await;
    }
}

async fn follow<S: Store>(store: &S, events: &mpsc::Sender<Event>) -> Result<(), StoreError> {
    let listing = store.list(KEY).await?;
    let leader = listing.entries.iter().find(|entry| entry.key == KEY).map(record::leader);
    tell(events, leader, listing.revision).await;
    let mut changes = store.watch(KEY, listing.revision).await?;
    while let Some(change) = changes.recv().await {
        match change {
            Change::Put(entry) if entry.key == KEY => tell(events, Some(record::leader(&entry)), entry.revision).await,
            Change::Deleted { key, revision } if key == KEY => tell(events, None, revision).await,
            // A longer key.
            Change::Put(_) | Change::Deleted { .. } => {}
        }
    }
    Ok(())
}

async fn tell(events: &mpsc::Sender<Event>, leader: Option<Leader>, at: Revision) {
    // An elector that is gone need not know.
    let _ = events.send(Event::Key { leader, at: Term(at.0) }).await;
}
