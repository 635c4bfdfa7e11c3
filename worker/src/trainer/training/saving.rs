//! When a training writes checkpoints, and what it does when storage takes none: it goes on. Only what stands between a stage and its
//! end is waited for, and for a bounded time.
//!
//! All ranks write a checkpoint or none does: whether one is at work still, and whether one has failed, goes through the sums that
//! ranks settle after each step anyway.

use super::Training;
use crate::supervisor::ipc::Report;
use crate::{
    checkpoint::{self, Busy, CheckpointError, HostCopy, Shelf, Task, Watch},
    trainer::{
        agreement,
        commits::{self, Teller},
        error::TrainerError,
    },
};
use common::{
    alarm::{StorageTrouble, Trouble},
    daemon::backoff::Backoff,
    ids::Step,
    manifest::{DataCursor, Share},
};
use std::time::{Duration, Instant};

/// How long a rank waits by itself before it asks the others how they are.
const ROUND: Duration = Duration::from_millis(200);
/// How long the end of a stage waits until old checkpoints are deleted. What is left then, the next commit deletes.
const TIDY: Duration = Duration::from_secs(10);
/// Between two tries of the last checkpoint.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// See the file's text.
pub(super) struct Saving {
    writer: checkpoint::Writer,
    shelf: Shelf,
    tell: Teller,
    /// The checkpoint that was begun last; absent when it is settled what came of it.
    open: Option<Step>,
    /// Whether any rank's storage was at work after the step at hand.
    busy: bool,
}

/// How the ranks' storage stands.
enum Stand {
    /// Every share is written.
    Written,
    /// Some are not.
    Failed,
    /// Storage was not done in time.
    Late,
}

impl Saving {
    pub(super) fn new(run: &Training<'_, '_>) -> Result<Self, CheckpointError> {
        let context = run.context;
        let tell = Teller {
            link: context.link.clone(),
            committed: context.committed.clone(),
            generation: context.plan.generation,
            rank: context.rank(),
        };
        let shelf = context.shelf(context.stage_kind())?;
        Ok(Self { writer: context.writer.clone(), shelf, tell, open: None, busy: false })
    }

    /// What this rank has to say after a step: whether its storage is at work, and whether the checkpoint that was begun last failed.
    pub(super) fn mine(&self) -> [i64; 2] {
        let failed = self.open.is_some_and(|step| self.tell.committed.has_failed(step));
        [i64::from(!self.writer.is_idle()), i64::from(failed)]
    }

    /// What all ranks have said. Of a checkpoint that failed somewhere rank 0 removes what was written, once nobody writes any more.
    pub(super) fn heard(&mut self, run: &Training<'_, '_>, busy: bool, failed: bool) {
        self.busy = busy;
        if failed
            && !busy
            && let Some(step) = self.open.take()
        {
            self.discard(run, step);
        }
    }

    /// Writes a checkpoint behind the training, unless some rank's storage is not done with an earlier one: then all leave this one
    /// out. Returns how long the training stood still.
    pub(super) fn save(&mut self, run: &Training<'_, '_>) -> Result<Duration, TrainerError> {
        if self.busy {
            if let Some(busy) = self.writer.busy() {
                self.left_out(run, busy);
            }
            return Ok(Duration::ZERO);
        }
        self.begin(run)
    }

    fn left_out(&self, run: &Training<'_, '_>, busy: Busy) {
        let Busy { step: earlier, operation, path, so_far } = busy;
        let step = Step(run.step);
        let file = path.display();
        tracing::warn!(step = step.0, at = earlier.0, operation, %file, ?so_far, "storage is busy: a checkpoint is left out");
        let (operation, seconds) = (operation.to_owned(), so_far.as_secs());
        let what = Trouble::Slow { operation, earlier, seconds };
        let trouble = Box::new(StorageTrouble { rank: self.tell.rank, step, file: path, what });
        self.tell.link.report(Report::StorageTrouble { generation: self.tell.generation, trouble });
    }

    /// Copies this rank's share to host memory and hands it to the storage thread.
    fn begin(&mut self, run: &Training<'_, '_>) -> Result<Duration, TrainerError> {
        let started = Instant::now();
        let (context, step, tell) = (run.context, Step(run.step), self.tell.clone());
        let named = run.parameters.named(context.collective)?;
        let copy = HostCopy::take(&named, context.rank(), context.world(), tell.generation);
        let shelf = self.shelf.clone();
        let data = DataCursor { position: step.0 * run.settings.global_batch, ..run.cursor.clone() };
        let run = Box::new(move |watch: &Watch| {
            let began = Instant::now();
            match shelf.write(watch, step, &copy) {
                Ok(part) => {
                    let seconds = began.elapsed().as_secs_f64();
                    tracing::info!(step = step.0, bytes = part.bytes, seconds, "wrote a checkpoint file");
                    let share = Box::new(Share { part, data });
                    let (generation, rank) = (tell.generation, tell.rank);
                    tell.link.report(Report::CheckpointWritten { generation, rank, step, share });
                }
                Err(error) => tell.failed(step, error),
            }
        });
        self.tell.committed.take_failure(step);
        self.open = Some(step);
        self.busy = true;
        let pushed = self.writer.push(Task { step, of: (self.tell.rank, self.tell.generation), run });
        assert!(pushed, "nothing waited: all ranks said so");
        Ok(started.elapsed())
    }

    fn discard(&self, run: &Training<'_, '_>, step: Step) {
        if !run.context.speaks() {
            return;
        }
        let shelf = self.shelf.clone();
        let remove = Box::new(move |watch: &Watch| commits::discard(watch, &shelf, step));
        self.writer.push(Task { step, of: (self.tell.rank, self.tell.generation), run: remove });
    }

    /// Writes the checkpoint without which the stage cannot end, and waits until it is committed: tried again and again for the time
    /// that the recipe grants. Returns how long the copies took.
    ///
    /// # Errors
    /// When storage does not take it in that time: on the rank whose storage it is, what it said.
    pub(super) fn save_last(&mut self, run: &Training<'_, '_>) -> Result<Duration, TrainerError> {
        let (step, mut still) = (Step(run.step), Duration::ZERO);
        let until = Instant::now() + run.context.plan.recipe.faults.storage_wait;
        let mut backoff = Backoff::new(AGAIN.0, AGAIN.1);
        if let Stand::Late = self.settle(run, until)? {
            return Err(self.give_up(run, step));
        }
        loop {
            still += self.begin(run)?;
            match self.settle(run, until)? {
                Stand::Late => return Err(self.give_up(run, step)),
                Stand::Written if commits::wait(run.context, step)? => {
                    // What is old is deleted behind the commit; the process may end right after this.
                    self.settle(run, Instant::now() + TIDY)?;
                    return Ok(still);
                }
                Stand::Written | Stand::Failed => {}
            }
            let wait = backoff.next(0.0);
            let late = agreement::agree(run.context.collective, Instant::now() + wait > until)?;
            self.discard(run, step);
            if late {
                // So that nothing half written is left behind, if storage lets it.
                self.settle(run, Instant::now() + TIDY)?;
                return Err(self.give_up(run, step));
            }
            tracing::warn!(step = step.0, ?wait, "tries the last checkpoint again");
            self.pause(run, Instant::now() + wait)?;
        }
    }

    /// Waits for all ranks' storage, in rounds. Nobody waits longer than a rank whose time is up.
    fn settle(&mut self, run: &Training<'_, '_>, until: Instant) -> Result<Stand, TrainerError> {
        loop {
            self.writer.wait(ROUND.min(until.saturating_duration_since(Instant::now())));
            let [busy, failed] = self.mine();
            let late = i64::from(Instant::now() >= until);
            let superseded = i64::from(run.context.link.is_superseded());
            let all = agreement::sums(run.context.collective, &[busy, failed, late, superseded])?;
            match all[..] {
                [_, _, _, superseded] if superseded > 0 => return Err(TrainerError::Superseded),
                [0, 0, ..] => return Ok(Stand::Written),
                [0, ..] => return Ok(Stand::Failed),
                [_, _, late, _] if late > 0 => return Ok(Stand::Late),
                _ => {}
            }
        }
    }

    /// Waits until a time of rank 0's, unless a later membership comes first.
    fn pause(&self, run: &Training<'_, '_>, until: Instant) -> Result<(), TrainerError> {
        loop {
            std::thread::park_timeout(ROUND.min(until.saturating_duration_since(Instant::now())));
            let over = i64::from(run.context.speaks() && Instant::now() >= until);
            let all = agreement::sums(run.context.collective, &[over, i64::from(run.context.link.is_superseded())])?;
            match all[..] {
                [_, superseded] if superseded > 0 => return Err(TrainerError::Superseded),
                [over, _] if over > 0 => return Ok(()),
                _ => {}
            }
        }
    }

    /// Why there is no last checkpoint, as this rank has it. A rank with nothing to say ends with the one that has.
    fn give_up(&self, run: &Training<'_, '_>, step: Step) -> TrainerError {
        if let Some(error) = self.tell.committed.take_failure(step) {
            return error.into();
        }
        if let Some(Busy { step, operation, path, so_far }) = self.writer.busy() {
            return CheckpointError::Hangs { operation, path, step, seconds: so_far.as_secs() }.into();
        }
        match run.context.collective.barrier() {
            Err(error) => error.into(),
            Ok(()) => CheckpointError::Elsewhere { step }.into(),
        }
    }
}
