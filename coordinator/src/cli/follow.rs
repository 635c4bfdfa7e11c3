//! Shows a job while it runs: a bar a stage on a terminal, a line now and then elsewhere, always on stderr.

use super::{client::Watch, error::CliError, output};
use common::{
    ids::Step,
    status::{Evaluated, Failure, FailureCause, JobStatus, Phase, Progress, StageStatus},
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// What was shown so far.
pub(super) struct Screen {
    /// Whether summaries go to stdout as text.
    summaries: bool,
    terminal: bool,
    bar: Option<(usize, ProgressBar)>,
    line_due: Instant,
    shown_summaries: usize,
    shown_failures: usize,
    shown_evaluations: Vec<Evaluated>,
    phase: Option<String>,
    /// Whether checkpoints were last said not to be written.
    alarmed: bool,
}

impl Screen {
    pub(super) fn new(format: output::Format) -> Self {
        Self {
            summaries: format == output::Format::Text,
            terminal: std::io::stderr().is_terminal(),
            bar: None,
            line_due: Instant::now(),
            shown_summaries: 0,
            shown_failures: 0,
            shown_evaluations: Vec::new(),
            phase: None,
            alarmed: false,
        }
    }

    /// Shows a job until it has ended; returns its last status.
    pub(super) async fn follow(&mut self, watch: &mut Watch) -> Result<JobStatus, CliError> {
        let mut last = None;
        while let Some(status) = watch.next().await? {
            self.update(&status);
            let ended = status.phase.exit_code().is_some();
            last = Some(status);
            if ended {
                break;
            }
        }
        self.clear();
        last.ok_or_else(|| CliError::contact("the coordinator ended before it said how the job stands"))
    }

    /// Shows a status.
    pub(super) fn update(&mut self, status: &JobStatus) {
        self.failures(status);
        self.phase(status);
        self.evaluations(status);
        self.alarm(status);
        while let Some(stage) = status.stages.get(self.shown_summaries).filter(|stage| stage.done) {
            self.clear();
            if let Some(summary) = stage.summary.as_ref().filter(|_| self.summaries) {
                output::summary(summary).iter().for_each(|line| println!("{line}"));
                println!();
            }
            self.shown_summaries += 1;
        }
        if let (Phase::Running | Phase::Stopping, Some(stage)) = (&status.phase, status.stages.get(status.stage)) {
            self.progress(status, stage);
        }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some((_, bar)) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    fn failures(&mut self, status: &JobStatus) {
        for (at, failure) in status.failures.iter().enumerate().skip(self.shown_failures) {
            let rank = failure.rank.map_or_else(|| "a trainer".to_owned(), |rank| format!("rank {rank}"));
            let same = |before: &Failure| before.generation == failure.generation && before.cause == failure.cause;
            let cause = match &failure.cause {
                _ if status.failures[..at].iter().any(same) => "the same".to_owned(),
                FailureCause::Error { message } => message.clone(),
                other => other.to_string(),
            };
            self.say(&format!("{}: {rank} on worker {}: {cause}", status.job, failure.worker));
        }
        self.shown_failures = status.failures.len();
    }

    /// What was found on the way, each once.
    fn evaluations(&mut self, status: &JobStatus) {
        let progress = status.stages.iter().filter_map(|stage| stage.progress.as_ref());
        let Some(newest) = progress.map(|progress| &progress.evaluated).rfind(|found| !found.is_empty()) else {
            return;
        };
        if *newest != self.shown_evaluations {
            newest.iter().for_each(|found| self.say(&format!("{}: {found}", status.job)));
            self.shown_evaluations.clone_from(newest);
        }
    }

    /// When checkpoints begin to fail, and when they are written again.
    fn alarm(&mut self, status: &JobStatus) {
        match &status.alarm {
            Some(alarm) if !self.alarmed => self.say(&format!("{}: ALARM: {alarm}", status.job)),
            None if self.alarmed => self.say(&format!("{}: checkpoints are written again", status.job)),
            _ => {}
        }
        self.alarmed = status.alarm.is_some();
    }

    fn phase(&mut self, status: &JobStatus) {
        let phase = match &status.phase {
            Phase::Waiting { reason } => format!("{}: waits: {reason}", status.job),
            Phase::Stopping => format!("{}: writes a checkpoint, then stops", status.job),
            _ => return,
        };
        if self.phase.as_ref() != Some(&phase) {
            self.say(&phase);
            self.phase = Some(phase);
        }
    }

    fn progress(&mut self, status: &JobStatus, stage: &StageStatus) {
        let Some(progress) = &stage.progress else { return };
        // Before all else: a narrow terminal cuts the end off.
        let alarm = status.alarm.as_ref().map(|alarm| format!("{}, ", alarm.short())).unwrap_or_default();
        let text = format!("{alarm}{}", describe(progress, status.ranks.len()));
        if !self.terminal {
            if Instant::now() >= self.line_due {
                let steps =
                    if progress.steps > 0 { format!(" {}/{}", progress.step, progress.steps) } else { String::new() };
                eprintln!("{}{steps}  {text}", stage.kind);
                self.line_due = Instant::now() + LINE_EVERY;
            }
            return;
        }
        if self.bar.as_ref().is_none_or(|(at, _)| *at != status.stage) {
            self.clear();
            self.bar = Some((status.stage, bar(&stage.kind)));
        }
        if let Some((_, bar)) = &self.bar {
            bar.set_length(progress.steps);
            bar.set_position(progress.step.0);
            bar.set_message(text);
        }
    }

    /// Takes the bar away.
    pub(super) fn clear(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.line_due = Instant::now();
    }
}

fn bar(kind: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{prefix:6} {bar:24} {pos}/{len}  {wide_msg}")
        .expect("the template is well formed")
        .progress_chars("=> ");
    bar.set_style(style);
    bar.set_prefix(kind.to_owned());
    bar
}

/// Loss, speed, time left, what it waits for, memory, ranks: what there is to say of a report.
fn describe(progress: &Progress, ranks: usize) -> String {
    let mut parts = Vec::new();
    if let Some(activity) = &progress.activity {
        parts.push(activity.clone());
    }
    if let Some(loss) = progress.loss {
        parts.push(format!("loss {loss:.4}"));
    }
    if let Some(rate) = progress.samples_per_s {
        parts.push(format!("{rate:.0} samples/s"));
    }
    // What a narrow terminal cuts off stands at the end.
    if let Some(step_s) = progress.step_s {
        let left = progress.steps.saturating_sub(progress.step.0);
        parts.push(format!("{} left", output::duration(step_s * left as f64)));
    }
    if progress.skipped_samples > 0 {
        parts.push(format!("{} samples skipped", progress.skipped_samples));
    }
    if let Some(share) = progress.mfu {
        parts.push(format!("MFU {:.1} %", 100.0 * share));
    }
    if let Some(share) = progress.data_wait_share {
        parts.push(format!("data wait {:.0} %", 100.0 * share));
    }
    // One rank waits for nobody.
    if let Some(share) = progress.exposed_communication_share.filter(|_| ranks > 1) {
        parts.push(format!("exposed communication {:.0} %", 100.0 * share));
    }
    if let Some(bytes) = progress.peak_memory_bytes {
        parts.push(format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)));
    }
    if let Some(Step(step)) = progress.checkpoint {
        parts.push(format!("checkpoint {step}"));
    }
    parts.push(format!("{ranks} ranks"));
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::ids::Generation;

    #[test]
    fn a_report_is_one_short_line() {
        let progress = Progress {
            loss: Some(3.25),
            samples_per_s: Some(180.4),
            data_wait_share: Some(0.021),
            exposed_communication_share: Some(0.034),
            mfu: Some(0.412),
            peak_memory_bytes: Some(3 << 29),
            step_s: Some(1.5),
            checkpoint: Some(Step(25)),
            ..Progress::at(Generation(2), 1, Step(40), 100)
        };
        assert_eq!(
            describe(&progress, 2),
            "loss 3.2500, 180 samples/s, 1 min 30 s left, MFU 41.2 %, data wait 2 %, exposed communication 3 %, 1.5 GiB, \
             checkpoint 25, 2 ranks"
        );
    }
}
