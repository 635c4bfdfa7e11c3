//! The loop.

use super::{
    Authority, Handle, Opening, Outside, Report, RuntimeError, ThisMachine,
    calendar::Calendar,
    fitness::{Fitness, Quarantine, is_fault},
    input::{Input, Reply, SessionId},
    jobs::Jobs,
    placing,
    refusals::Refusals,
    storage,
    workers::Workers,
};
use crate::{
    job::{self, Command, Event, JobState, Leaves, Life, LivingTrainer, Submission},
    rendezvous::Place,
    store::Store,
};
use common::{
    daemon::notify::Manager,
    ids::{JobId, WorkerId},
    refusal::Refusal,
    status::{Barred, JobStatus, WorkerStatus},
    time::Timestamp,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// How many inputs may wait for the loop.
const INPUTS: usize = 1024;
/// How often the loop looks at the time.
const TICK: Duration = Duration::from_millis(500);
/// A round that took longer was not spent listening: the store took its time, or the process stood still.
const DEAF: Duration = Duration::from_secs(1);

/// Settings of the loop.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// How long a worker counts as living after it was last heard of.
    pub lease: Duration,
    /// How long a worker that a job's record names may take to come back when the loop begins.
    pub return_within: Duration,
    /// The wall clock and shared storage.
    pub outside: Arc<dyn Outside>,
    /// What decides: [`job::transition`].
    pub decide: Decide,
    /// When a machine gets no new trainers because too many were lost on it; absent means never.
    pub quarantine: Option<Quarantine>,
    /// Who is told, by the loop itself, that it lives.
    pub manager: Manager,
}

/// A decision: what an event makes of a job.
pub type Decide = fn(&JobState, Event, Timestamp) -> (JobState, Vec<Command>);

impl Default for RuntimeConfig {
    fn default() -> Self {
        let outside = Arc::new(ThisMachine);
        Self {
            lease: Duration::from_secs(5),
            return_within: Duration::from_secs(5),
            outside,
            decide: job::transition,
            quarantine: None,
            manager: Manager::default(),
        }
    }
}

/// The loop's state. [`Runtime::open`] loads it, [`Runtime::run`] runs it.
pub struct Runtime<S> {
    store: S,
    authority: Authority,
    config: RuntimeConfig,
    calendar: Calendar,
    inputs: mpsc::Receiver<Input>,
    jobs: Jobs,
    workers: Workers,
    /// Something happened that a waiting job may find places by: a job changed, or a worker came or went. Heartbeats and progress
    /// are neither, so that they cost the same however many workers there are.
    moved: bool,
    /// When the loop last listened.
    listened: Instant,
    /// The loop was held up, and has not listened since.
    hears_first: bool,
    fitness: Fitness,
    refusals: Refusals,
}

impl<S: Store> Runtime<S> {
    /// Loads every job. Nothing happens until [`Runtime::run`] is called; what is asked meanwhile waits.
    ///
    /// # Errors
    /// When the store or a record cannot be read.
    pub async fn open(store: S, config: RuntimeConfig) -> Result<(Handle, Self), RuntimeError> {
        let mut jobs = Jobs::load(&store, config.outside.wall()).await?;
        let mut calendar = Calendar::begin(config.outside.clone(), jobs.newest_change());
        let now = calendar.now();
        jobs.begin_waits_anew(now);
        let fitness = Fitness::load(&store).await?;
        let mut workers = Workers::default();
        for place in placing::held(&jobs).into_keys() {
            let extra = config.return_within.saturating_sub(config.lease);
            workers.expect(&place.worker, now, Instant::now() + extra);
        }
        let (sender, inputs) = mpsc::channel(INPUTS);
        let authority = Authority::unlimited();
        let handle = Handle::new(sender, config.lease);
        Ok((
            handle,
            Self {
                store,
                authority,
                config,
                calendar,
                inputs,
                jobs,
                workers,
                moved: true,
                listened: Instant::now(),
                hears_first: false,
                fitness,
                refusals: Refusals::default(),
            },
        ))
    }

    /// The same for one of several coordinators: the loop ends as soon as it may no longer act.
    #[must_use]
    pub fn under(self, authority: Authority) -> Self {
        Self { authority, ..self }
    }

    /// Runs until the token is cancelled or nobody can ask any more.
    ///
    /// # Errors
    /// When the store fails, as nothing that is decided could be kept, or the authority is over.
    pub async fn run(mut self, token: CancellationToken) -> Result<(), RuntimeError> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.listened = Instant::now();
        loop {
            tokio::select! {
                biased; // An end, then time, then what is heard: a flood of reports keeps no lease from lapsing.
                () = token.cancelled() => break,
                // At the latest this is what it hears: rounds are short unless something holds the loop up.
                _ = ticks.tick() => self.tick().await?,
                input = self.inputs.recv() => match input {
                    Some(input) => self.hear(input).await?,
                    None => break,
                },
            }
            if std::mem::take(&mut self.moved) {
                self.place().await?;
            }
            self.forgive();
        }
        self.authority.check()?;
        self.refusals.flush(&self.store, true).await?;
        self.jobs.flush(&self.store, true).await
    }

    async fn hear(&mut self, input: Input) -> Result<(), RuntimeError> {
        self.authority.check()?;
        match input {
            Input::Submit(submission, reply) => {
                let result = self.submit(*submission).await;
                answer(reply, result)
            }
            Input::List(reply) => answer(reply, Ok(self.jobs.statuses())),
            Input::Watch(job, reply) => answer(reply, self.jobs.watch(&job)),
            Input::Events(job, after, reply) => {
                answer(reply, self.jobs.get(&job).map(|state| state.events_after(after)))
            }
            Input::Ask(job, event, reply) => {
                let result = self.request(&job, event).await;
                answer(reply, result)
            }
            Input::Workers(reply) => answer(reply, Ok(self.worker_statuses())),
            Input::Drain(worker, undo, reply) => {
                let result = self.drain(&worker, undo).await;
                answer(reply, result)
            }
            Input::Refused(reply) => {
                let result = self.refusals.of(&self.store).await.map(|refusals| refusals.shown());
                answer(reply, result)
            }
            Input::Refuse(worker, host, refusal, reply) => {
                let result = self.refuse(&worker, &host, refusal).await;
                answer(reply, result)
            }
            Input::Open(opening, outbox, reply) => {
                let result = self.open_session(opening, outbox).await;
                answer(reply, result)
            }
            Input::Report(worker, session, report, reply) => {
                let result = self.report(worker, session, report).await;
                answer(reply, result)
            }
            Input::Closed(worker, session) => {
                tracing::info!(worker = %worker, "a worker's session ended");
                self.workers.closed(&worker, session);
                self.moved = true;
                Ok(())
            }
        }
    }

    async fn submit(&mut self, submission: Submission) -> Result<Arc<JobStatus>, RuntimeError> {
        let job = submission.job.clone();
        if submission.world_size.0 == 0 {
            return Err(RuntimeError::NoRanks(job));
        }
        if let Some(elastic) = submission.recipe.elastic {
            let (asked, least) = (submission.world_size.0, elastic.min_ranks);
            let most = elastic.max_ranks.unwrap_or(u32::MAX);
            if asked < least || asked > most {
                return Err(RuntimeError::Ranks { job, asked, least, most });
            }
        }
        if let Ok(known) = self.jobs.get(&job) {
            let same = known.recipe == submission.recipe && known.world_size == submission.world_size;
            return if same { self.status(&job) } else { Err(RuntimeError::Exists(job)) };
        }
        self.jobs.leave_alone(&job, &submission.recipe)?;
        let now = self.now();
        tracing::info!(job = %job, world = submission.world_size.0, "job submitted");
        self.jobs.create(&self.store, JobState::submitted(submission, now), now).await?;
        self.place().await?;
        self.status(&job)
    }

    /// Applies what a user asks, unless the job's state forbids it.
    async fn request(&mut self, job: &JobId, event: Event) -> Result<Arc<JobStatus>, RuntimeError> {
        job::check(self.jobs.get(job)?, &event)?;
        if let Event::Resume(resume) = &event {
            if let Some(step) = resume.step {
                storage::check(self.config.outside.as_ref(), self.jobs.get(job)?, step).await?;
            }
            self.jobs.leave_alone(job, &self.jobs.get(job)?.recipe)?;
            self.confirm(job).await?;
        }
        self.apply(job, event).await?;
        self.place().await?;
        self.status(job)
    }

    async fn open_session(
        &mut self,
        opening: Opening,
        outbox: mpsc::Sender<Command>,
    ) -> Result<SessionId, RuntimeError> {
        let now = self.now();
        if let Some(refusal) = self.workers.refuses(&opening) {
            let message = self.refuse(&opening.worker, &opening.inventory.host, refusal).await?;
            return Err(RuntimeError::RefusedWorker(message));
        }
        self.moved = true;
        let session = self.workers.open(&opening, outbox, now, Instant::now());
        let (worker, trainers) = (&opening.worker, opening.inventory.trainers);
        tracing::info!(worker = %worker, trainers, living = opening.living.len(), "a worker registered");
        for job in self.every_job() {
            let mine = opening.living.iter().filter(|(other, _)| *other == job);
            let living: Vec<LivingTrainer> = mine.map(|(_, trainer)| trainer.clone()).collect();
            let event = Event::WorkerRegistered { worker: worker.clone(), living };
            self.apply(&job, event).await?;
        }
        Ok(session)
    }

    /// Keeps that a worker was refused; what to tell it.
    async fn refuse(&mut self, worker: &WorkerId, host: &str, refusal: Refusal) -> Result<String, RuntimeError> {
        let now = self.now();
        Ok(self.refusals.of(&self.store).await?.note(worker, host, refusal, now))
    }

    async fn report(&mut self, worker: WorkerId, session: SessionId, report: Report) -> Result<(), RuntimeError> {
        let now = self.now();
        if !self.workers.heard(&worker, session, now, Instant::now()) {
            return Err(RuntimeError::SessionOver(worker));
        }
        let (job, event) = match report {
            Report::Heartbeat => return Ok(()),
            Report::Leaving => {
                self.workers.leaves(&worker);
                return self.leave(&worker, Leaves::Preempted).await;
            }
            Report::Job(job, event) => (job, event),
        };
        match event.as_ref() {
            Event::TrainerReady { generation, place, .. } => self.workers.occupy(place, &job, *generation),
            Event::TrainerEnded { generation, place, .. } => {
                self.workers.vacate(place, &job, *generation);
                self.moved = true;
            }
            _ => {}
        }
        if self.jobs.get(&job).is_err() {
            tracing::warn!(job = %job, worker = %worker, "ignored a report of an unknown job");
            return Ok(());
        }
        let fault = is_fault(&event);
        self.apply(&job, *event).await?;
        match self.config.quarantine.filter(|_| fault) {
            Some(rule) if self.fitness.fault(&self.store, &worker, rule, now).await? => {
                tracing::warn!(worker = %worker, "in quarantine: too many trainers were lost there");
                self.leave_for_others(&worker).await
            }
            _ => Ok(()),
        }
    }

    /// Drains a worker, or lifts that.
    async fn drain(&mut self, worker: &WorkerId, undo: bool) -> Result<Vec<WorkerStatus>, RuntimeError> {
        // One that has not come back to this coordinator yet may be drained by its record.
        let barred = undo && self.fitness.barred(worker, self.calendar.now()).is_some();
        if !self.workers.knows(worker) && !barred {
            return Err(RuntimeError::UnknownWorker(worker.clone()));
        }
        tracing::info!(worker = %worker, undo, "drain");
        if undo {
            self.fitness.undrain(&self.store, worker).await?;
        } else {
            self.fitness.drain(&self.store, worker).await?;
            self.leave(worker, Leaves::Drained).await?;
        }
        self.place().await?;
        Ok(self.worker_statuses())
    }

    /// Has every job leave a worker.
    async fn leave(&mut self, worker: &WorkerId, why: Leaves) -> Result<(), RuntimeError> {
        for job in self.every_job() {
            self.apply(&job, Event::WorkerLeaves { worker: worker.clone(), why }).await?;
        }
        Ok(())
    }

    /// Has the jobs leave a worker in quarantine that find places elsewhere.
    async fn leave_for_others(&mut self, worker: &WorkerId) -> Result<(), RuntimeError> {
        for job in self.every_job() {
            let now = self.now();
            let members = self.jobs.get(&job)?.active().into_iter().flat_map(|membership| &membership.members);
            let here = members.filter(|member| member.place.worker == *worker).count();
            if here > 0 && self.offered(0, now).len() >= here {
                let why = Leaves::Quarantined;
                self.apply(&job, Event::WorkerLeaves { worker: worker.clone(), why }).await?;
            }
        }
        Ok(())
    }

    /// The free places that a job which needs so many is offered.
    fn offered(&self, needed: usize, now: Timestamp) -> Vec<Place> {
        let leaving = |worker: &WorkerId| self.workers.is_leaving(worker).then_some(Barred::Leaving);
        let barred = |worker: &WorkerId| leaving(worker).or_else(|| self.fitness.barred(worker, now));
        placing::offered(placing::free_places(&self.jobs, &self.workers), needed, barred)
    }

    fn worker_statuses(&mut self) -> Vec<WorkerStatus> {
        let now = self.now();
        let mut statuses = self.workers.statuses(&placing::held(&self.jobs));
        for status in &mut statuses {
            status.barred = self.fitness.barred(&status.worker, now).or(status.barred);
        }
        statuses
    }

    /// Silence that nobody could have been heard in is nobody's: when the loop was held up, by its store or by whatever stopped
    /// the process, no worker's lease runs on meanwhile. What they said waits to be heard, and is before time goes on for jobs.
    fn forgive(&mut self) {
        let gap = self.listened.elapsed();
        if gap > DEAF {
            tracing::warn!(seconds = gap.as_secs_f64(), "the loop was held up; no worker's lease ran meanwhile");
            self.workers.forgive(gap, Instant::now());
            self.hears_first = true;
        }
        self.listened = Instant::now();
    }

    async fn tick(&mut self) -> Result<(), RuntimeError> {
        self.authority.check()?;
        self.config.manager.alive();
        self.forgive();
        if std::mem::take(&mut self.hears_first) {
            return Ok(());
        }
        for worker in self.workers.lapsed(self.config.lease, Instant::now()) {
            tracing::warn!(worker = %worker, "a worker's lease lapsed");
            self.moved = true;
            for job in self.every_job() {
                self.apply(&job, Event::WorkerLost { worker: worker.clone() }).await?;
            }
        }
        let living = |state: &&JobState| !state.is_over();
        let living: Vec<JobId> = self.jobs.states().into_iter().filter(living).map(|state| state.job.clone()).collect();
        for job in living {
            self.apply(&job, Event::Tick).await?;
        }
        // What they do without places depends on how long they have waited.
        self.moved |= self.jobs.states().into_iter().any(|state| state.waits_for_places_or_time());
        self.refusals.flush(&self.store, false).await?;
        self.jobs.flush(&self.store, false).await
    }

    /// Offers free places to the jobs that wait for them, oldest first.
    async fn place(&mut self) -> Result<(), RuntimeError> {
        let mut waiting: Vec<&JobState> = self.jobs.states().into_iter().filter(|state| state.wants_places()).collect();
        // Those first that hold a state in memory; those last that run without.
        waiting.sort_by_key(|state| match state.life {
            Life::Regrouping { .. } => 0,
            Life::Queued { .. } => 1,
            _ => 2,
        });
        let waiting: Vec<JobId> = waiting.into_iter().map(|state| state.job.clone()).collect();
        for job in waiting {
            let now = self.now();
            let state = self.jobs.get(&job)?;
            let free = self.offered(state.places_needed(), now);
            if matches!(state.life, Life::Queued { .. }) && free.len() >= state.ranks().0 as usize {
                self.confirm(&job).await?;
            }
            self.apply(&job, Event::Capacity { free }).await?;
        }
        Ok(())
    }

    /// Looks on storage for commits that were ordered and never confirmed.
    async fn confirm(&mut self, job: &JobId) -> Result<(), RuntimeError> {
        for step in storage::unconfirmed(self.config.outside.as_ref(), self.jobs.get(job)?).await {
            self.apply(job, Event::CheckpointFound { step }).await?;
        }
        Ok(())
    }

    /// Decides, stores, then acts.
    async fn apply(&mut self, job: &JobId, event: Event) -> Result<(), RuntimeError> {
        let now = self.now();
        let state = self.jobs.get(job)?;
        let reports = matches!(event, Event::Progress { .. } | Event::Pulse { .. });
        let (next, commands) = (self.config.decide)(state, event, now);
        if next != *state {
            self.moved |= !reports;
            // What leads to orders is stored before they are given.
            let lazily = commands.is_empty() && (reports || next.only_refused_more_than(state));
            self.jobs.update(&self.store, next, lazily, now).await?;
        }
        // The store may have taken its time.
        self.authority.check()?;
        for command in commands {
            self.workers.send(command);
        }
        Ok(())
    }

    fn now(&mut self) -> Timestamp {
        self.calendar.now()
    }

    fn status(&self, job: &JobId) -> Result<Arc<JobStatus>, RuntimeError> {
        Ok(self.jobs.watch(job)?.borrow().clone())
    }

    fn every_job(&self) -> Vec<JobId> {
        self.jobs.states().into_iter().map(|state| state.job.clone()).collect()
    }
}

/// Answers; an error of the store, or the end of the authority, also ends the loop, which is then told by [`RuntimeError::Closed`].
fn answer<T>(reply: Reply<T>, result: Result<T, RuntimeError>) -> Result<(), RuntimeError> {
    match result {
        Err(error @ (RuntimeError::Store(_) | RuntimeError::Record { .. } | RuntimeError::Deposed)) => Err(error),
        result => {
            // Whoever asked may have gone.
            let _ = reply.send(result);
            Ok(())
        }
    }
}
