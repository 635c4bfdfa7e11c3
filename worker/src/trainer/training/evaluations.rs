//! Evaluations between two steps: `OUTPUT/STAGE/eval.jsonl`, a line a data set, written by the lowest rank.
//!
//! After a resume each step's lines are there once: those of later steps are dropped, and an evaluation that the run before
//! did not come to is made up for before the first step.

use super::{Task, Training, ledger::Ledger};
use crate::trainer::{agreement, error::TrainerError, metrics::StepLines};
use common::{ids::Step, manifest::paths, status::Evaluated};
use std::{path::PathBuf, time::Instant};

/// See the file's text.
pub(super) struct Evaluations {
    path: PathBuf,
    /// Absent on other ranks, and until there is something to write.
    file: Option<StepLines<Evaluated>>,
    /// The step whose lines are the last.
    newest: Option<Step>,
}

impl Evaluations {
    /// Drops what an earlier run wrote after the step at which this one begins.
    pub(super) fn open(run: &Training<'_, '_>) -> Result<Self, TrainerError> {
        let folder = paths::stage_folder(&run.context.plan.output, run.context.stage_kind());
        let mut evaluations = Self { path: folder.join("eval.jsonl"), file: None, newest: None };
        if run.context.speaks() && evaluations.path.exists() {
            evaluations.file(run)?;
        }
        Ok(evaluations)
    }

    fn file(&mut self, run: &Training<'_, '_>) -> Result<&mut StepLines<Evaluated>, TrainerError> {
        if self.file.is_none() {
            let failed = |source| TrainerError::Io { operation: "open", path: self.path.clone(), source };
            let (file, last) = StepLines::open(&self.path, Step(run.step)).map_err(failed)?;
            self.newest = last.map(|last: Evaluated| last.step);
            self.file = Some(file);
        }
        Ok(self.file.as_mut().expect("it was opened just now"))
    }

    /// Makes up for the evaluation of the step at which this run begins, if it is due and its lines are not there.
    pub(super) fn make_up<T: Task>(
        &mut self,
        run: &mut Training<'_, '_>,
        task: &T,
        ledger: &mut Ledger,
    ) -> Result<(), TrainerError> {
        if run.step == 0 || !task.evaluates_after(Step(run.step), &run.order) {
            return Ok(());
        }
        let missing = run.context.speaks() && self.newest != Some(Step(run.step));
        if agreement::agree(run.context.collective, missing)? {
            self.take(run, task, ledger)?;
        }
        Ok(())
    }

    /// Evaluates the weights as they are now, and says what was found.
    pub(super) fn take<T: Task>(
        &mut self,
        run: &mut Training<'_, '_>,
        task: &T,
        ledger: &mut Ledger,
    ) -> Result<(), TrainerError> {
        let began = Instant::now();
        let average = task.evaluates_average();
        if average {
            run.parameters.exchange_average();
        }
        let found = task.evaluate(&ledger.standing(run));
        if average {
            run.parameters.exchange_average();
        }
        let found = found?;
        if run.context.speaks() {
            for found in &found {
                tracing::info!(step = run.step, data = found.data, %found, "evaluated");
            }
            let path = self.path.clone();
            let failed = |source| TrainerError::Io { operation: "write", path, source };
            self.file(run)?.append(&found).map_err(failed)?;
        }
        ledger.evaluated(run, found, began.elapsed());
        Ok(())
    }
}
