//! The thread that does all of a process's work on checkpoints' storage, one task after the other: shares, manifests, deletions.
//! Nobody waits for it but who says for how long, so that storage that hangs holds up neither a training nor the end of a process.

use super::watch::Watch;
use common::ids::{Generation, Rank, Step};
use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How many tasks may wait. Of shares there is one at most: a training leaves a checkpoint out while there is work.
const WAITING: usize = 8;
/// How much the thread gives way (see nice(7)): hashing and copying are not to take a core from what computes or decodes.
const NICENESS: i32 = 5;

/// A task.
pub struct Task {
    /// Of which checkpoint.
    pub step: Step,
    /// Of which rank of which membership.
    pub of: (Rank, Generation),
    /// What is to be done.
    pub run: Box<dyn FnOnce(&Watch) + Send>,
}

/// What storage has been at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Busy {
    /// The checkpoint.
    pub step: Step,
    /// The operation, as `watch` names it.
    pub operation: &'static str,
    /// The file or folder; empty before the first operation.
    pub path: PathBuf,
    /// For how long it has been at this task.
    pub so_far: Duration,
}

/// See the file's text. Clones are the same thread; it ends with the process.
#[derive(Clone)]
pub struct Writer(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    watch: Watch,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Task>,
    /// What is being done, and since when.
    working: Option<(Step, Instant)>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.working.is_none() && self.waiting.is_empty()
    }
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Panics
    /// When the system starts no thread.
    pub fn start(watch: Watch) -> Self {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), watch });
        let of_thread = shared.clone();
        let started = std::thread::Builder::new().name("storage".to_owned()).spawn(move || work(&of_thread));
        started.expect("a process that starts trainings may start a thread");
        Self(shared)
    }

    /// Adds a task; false when too many wait, and this one is not done.
    pub fn push(&self, task: Task) -> bool {
        let mut state = self.0.lock();
        if state.waiting.len() >= WAITING {
            return false;
        }
        state.waiting.push_back(task);
        self.0.changed.notify_all();
        true
    }

    /// Whether everything is done.
    pub fn is_idle(&self) -> bool {
        self.0.lock().is_idle()
    }

    /// Waits until everything is done, at most so long; whether it is.
    pub fn wait(&self, longest: Duration) -> bool {
        let until = Instant::now() + longest;
        let mut state = self.0.lock();
        while !state.is_idle() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// What is being done; absent when nothing is.
    pub fn busy(&self) -> Option<Busy> {
        let state = self.0.lock();
        let first = || state.waiting.front().map(|task| (task.step, Instant::now()));
        let (step, since) = state.working.or_else(first)?;
        let (operation, path) =
            self.0.watch.newest().map_or(("start", PathBuf::new()), |(operation, path)| (operation.name(), path));
        Some(Busy { step, operation, path, so_far: since.elapsed() })
    }
}

fn work(shared: &Shared) {
    // Linux keeps it for each thread. A system that refuses it writes all the same.
    let _ = rustix::process::setpriority_process(None, NICENESS);
    let mut state = shared.lock();
    loop {
        let Some(task) = state.waiting.pop_front() else {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        state.working = Some((task.step, Instant::now()));
        drop(state);
        shared.watch.of(task.of.0, task.of.1);
        (task.run)(&shared.watch);
        shared.watch.rest();
        state = shared.lock();
        state.working = None;
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::watch::Operation;
    use std::{path::Path, sync::mpsc::channel};

    fn task(step: u64, run: impl FnOnce(&Watch) + Send + 'static) -> Task {
        Task { step: Step(step), of: (Rank(0), Generation(1)), run: Box::new(run) }
    }

    #[test]
    fn nobody_waits_longer_than_it_says_for_storage_that_hangs_and_what_it_hangs_in_is_known() {
        let writer = Writer::start(Watch::new("sync=hang@1".parse().unwrap()));
        assert!(writer.is_idle() && writer.busy().is_none());
        let (reached, hangs) = channel();
        assert!(writer.push(task(8, move |watch| {
            reached.send(()).unwrap();
            watch.at(Operation::Sync, Path::new("/shared/rank-00001.safetensors")).unwrap();
        })));
        hangs.recv().unwrap();
        assert!(!writer.wait(Duration::from_millis(50)));
        let busy = writer.busy().unwrap();
        assert_eq!((busy.step, busy.operation), (Step(8), "sync"));
        assert_eq!(busy.path, Path::new("/shared/rank-00001.safetensors"));
        let taken = (0..20).filter(|step| writer.push(task(*step, |_| {}))).count();
        assert_eq!(taken, WAITING, "what waits is bounded");
    }

    #[test]
    fn tasks_are_done_in_their_order() {
        let writer = Writer::start(Watch::default());
        let (sender, done) = channel();
        for step in 0..5 {
            let sender = sender.clone();
            assert!(writer.push(task(step, move |_| sender.send(step).unwrap())));
        }
        assert!(writer.wait(Duration::from_secs(10)));
        assert_eq!(done.try_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }
}
