//! What waits to be written to the agent: bounded, in order, and nothing that matters is lost with a connection.

use crate::supervisor::ipc::Report;
use common::ids::Generation;
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// How many reports are kept: those not written yet, and those that are written again on the next connection.
const KEPT: usize = 64;
/// The shortest time between two reports of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// What the writer does next.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// Write this, then call [`Outbox::written`] with its number.
    Write(u64, Box<Report>),
    /// Nothing before this time.
    At(Instant),
    /// Nothing until a report comes.
    Idle,
}

/// Reports on their way to the agent.
#[derive(Debug, Default)]
pub struct Outbox {
    kept: VecDeque<Kept>,
    /// The newest progress that is not among `kept`.
    progress: Option<Report>,
    /// When progress was handed out last; absent before the first of a plan.
    progress_at: Option<Instant>,
    numbers: u64,
}

#[derive(Debug)]
struct Kept {
    number: u64,
    report: Report,
    written: bool,
}

impl Outbox {
    /// Takes a report. Of progress only the newest is kept, and what is newest before the stage ends goes out before
    /// it. Returns the report that had to go unwritten because the outbox is full.
    pub fn push(&mut self, report: Report) -> Option<Report> {
        if matches!(report, Report::Progress(_)) {
            self.progress = Some(report);
            return None;
        }
        if matches!(report, Report::StageFinished { .. } | Report::Failed { .. }) {
            self.hasten();
        }
        self.keep(report)
    }

    /// Puts progress that waits for its time among what is written at once.
    pub fn hasten(&mut self) {
        if let Some(progress) = self.progress.take() {
            self.keep(progress);
        }
    }

    fn keep(&mut self, report: Report) -> Option<Report> {
        let full = self.kept.len() >= KEPT;
        let written = self.kept.iter().position(|kept| kept.written);
        let removed = if full { self.kept.remove(written.unwrap_or(0)) } else { None };
        self.numbers += 1;
        self.kept.push_back(Kept { number: self.numbers, report, written: false });
        removed.filter(|kept| !kept.written).map(|kept| kept.report)
    }

    /// What to write at `now`.
    pub fn next(&mut self, now: Instant) -> Next {
        if let Some(kept) = self.kept.iter().find(|kept| !kept.written) {
            return Next::Write(kept.number, Box::new(kept.report.clone()));
        }
        let due = self.progress_at.map_or(now, |at| at + PROGRESS_EVERY);
        match (&self.progress, due <= now) {
            (None, _) => Next::Idle,
            (Some(_), false) => Next::At(due),
            (Some(_), true) => {
                self.progress_at = Some(now);
                self.hasten();
                self.next(now)
            }
        }
    }

    /// The report of this number is on its way: it is forgotten, or kept in case the connection loses it. `lost` says
    /// that the connection is gone already.
    pub fn written(&mut self, number: u64, lost: bool) {
        if let Some(kept) = self.kept.iter_mut().find(|kept| kept.number == number) {
            kept.written = !lost || repeated(&kept.report).is_none();
        }
        self.kept.retain(|kept| !kept.written || repeated(&kept.report).is_some());
    }

    /// A new connection: whatever the agent may not have seen is written again.
    pub fn connected(&mut self) {
        self.kept.iter_mut().for_each(|kept| kept.written = false);
    }

    /// A plan of this generation begins: what was written of those before is forgotten.
    pub fn begin(&mut self, generation: Generation) {
        self.progress_at = None;
        self.kept.retain(|kept| !kept.written || repeated(&kept.report) == Some(generation));
    }

    /// Whether all is written.
    pub fn is_empty(&self) -> bool {
        self.progress.is_none() && self.kept.iter().all(|kept| kept.written)
    }
}

/// The generation of a report that is written again on a new connection; absent for those that are not.
fn repeated(report: &Report) -> Option<Generation> {
    match report {
        Report::CheckpointWritten { generation, .. }
        | Report::CheckpointCommitted { generation, .. }
        | Report::StorageTrouble { generation, .. }
        | Report::PeersLost { generation, .. }
        | Report::StageFinished { generation, .. } => Some(*generation),
        Report::Hello { .. } | Report::Progress(_) | Report::Failed { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trainer::link::fixtures::{committed, finished, progress};

    /// Everything that is written at `now`.
    fn drain(outbox: &mut Outbox, now: Instant) -> Vec<Report> {
        let mut all = Vec::new();
        while let Next::Write(number, report) = outbox.next(now) {
            outbox.written(number, false);
            all.push(*report);
        }
        all
    }

    #[test]
    fn progress_goes_out_once_a_second_and_the_last_one_before_the_end() {
        let (mut outbox, start) = (Outbox::default(), Instant::now());
        outbox.push(progress(1, 1));
        assert_eq!(drain(&mut outbox, start), [progress(1, 1)]);
        outbox.push(progress(1, 2));
        outbox.push(progress(1, 3));
        assert_eq!(outbox.next(start), Next::At(start + PROGRESS_EVERY));
        assert_eq!(drain(&mut outbox, start + PROGRESS_EVERY), [progress(1, 3)]);
        outbox.push(progress(1, 4));
        outbox.push(finished(1));
        assert_eq!(drain(&mut outbox, start + PROGRESS_EVERY), [progress(1, 4), finished(1)]);
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_new_connection_gets_what_the_one_before_may_have_lost_and_a_new_plan_forgets_it() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        outbox.push(progress(1, 1));
        outbox.push(committed(1, 10));
        outbox.push(finished(1));
        assert_eq!(drain(&mut outbox, now).len(), 3);
        outbox.connected();
        assert_eq!(drain(&mut outbox, now), [committed(1, 10), finished(1)]);
        outbox.begin(Generation(2));
        outbox.connected();
        assert_eq!(drain(&mut outbox, now), []);
    }

    #[test]
    fn progress_is_not_told_twice_when_its_connection_ends_at_once() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        outbox.push(progress(1, 1));
        let Next::Write(number, _) = outbox.next(now) else { panic!("nothing to write") };
        outbox.written(number, true);
        outbox.push(committed(1, 10));
        let Next::Write(number, _) = outbox.next(now) else { panic!("nothing to write") };
        outbox.written(number, true);
        outbox.connected();
        assert_eq!(drain(&mut outbox, now), [committed(1, 10)]);
    }

    #[test]
    fn a_full_outbox_drops_what_was_written_first() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        outbox.push(committed(1, 0));
        drain(&mut outbox, now);
        for step in 1..KEPT as u64 {
            assert_eq!(outbox.push(committed(1, step)), None);
        }
        assert_eq!(outbox.push(committed(1, 100)), None);
        assert_eq!(outbox.push(committed(1, 101)), Some(committed(1, 1)));
    }
}
