//! What is said of steps: a line each in the metrics file, a report now and then, the trace, the summary at the end.

use super::Training;
use crate::{
    torch::{self, memory, peak},
    trainer::{
        commits,
        error::TrainerError,
        metrics::{StepLines, StepMetrics},
        step::{NonFinite, StepBegun, StepOutput},
        timeline::StepTimes,
        trace::Trace,
    },
};
use common::{
    ids::Step,
    manifest::paths,
    status::{Evaluated, Progress},
};
use std::{
    collections::VecDeque,
    path::PathBuf,
    time::{Duration, Instant},
};

/// A report is sent as often as this.
const REPORT_EVERY: Duration = Duration::from_millis(500);
/// Of so many steps a rank's own time is told: one that is slow is so for half of them.
const OWN: usize = 20;

/// A step on its way.
pub(super) struct Begun {
    /// Which, from 1.
    pub step: Step,
    /// What it will say.
    pub output: StepBegun,
    /// The learning rate it is taken with.
    pub learning_rate: f64,
    /// How long it waited for data.
    pub data_wait: Duration,
    /// Floating-point operations of this rank's part.
    pub flops: f64,
}

/// Steps since some moment.
struct Window {
    began: Instant,
    /// In which no step was taken.
    paused: Duration,
    steps: u64,
    wait: Duration,
    exposed: Duration,
    /// Of all ranks, as this one's samples have it.
    flops: f64,
}

impl Window {
    fn new() -> Self {
        let none = Duration::ZERO;
        Self { began: Instant::now(), paused: none, steps: 0, wait: none, exposed: none, flops: 0.0 }
    }

    fn add(&mut self, data_wait: Duration, times: &StepTimes, flops: f64) {
        self.steps += 1;
        self.flops += flops;
        self.wait += data_wait;
        self.exposed += times.exposed_communication();
    }

    fn seconds(&self) -> f64 {
        self.began.elapsed().saturating_sub(self.paused).as_secs_f64().max(1e-9)
    }
}

/// See the file's text.
pub(super) struct Ledger {
    path: PathBuf,
    file: Option<StepLines<StepMetrics>>,
    trace: Option<Trace>,
    /// Of the global batch's samples per sample of this rank.
    share: f64,
    peak_flop_per_s: Option<f64>,
    first_step: u64,
    /// The step that was read last.
    last: Option<StepOutput>,
    all: Window,
    recent: Window,
    stall: Duration,
    all_stall: Duration,
    /// How long the ranks compared what they have.
    compared: Duration,
    /// How long they told each other, after every step, what each must know of the others.
    agreed: Duration,
    /// How long recent steps took without waits for other ranks.
    own: VecDeque<Duration>,
    skipped: u64,
    /// Steps whose update was left out because something was not finite: since a resume, and just before this.
    skipped_steps: u64,
    skipped_in_a_row: u64,
    last_loss: f64,
    /// What the newest evaluation found.
    evaluated: Vec<Evaluated>,
    /// How long evaluations took since the last step, and how many there were and how long all took.
    evaluation: Option<Duration>,
    evaluations: (u64, Duration),
}

impl Ledger {
    pub(super) fn open(run: &Training<'_, '_>) -> Result<Self, TrainerError> {
        let context = run.context;
        let folder = paths::stage_folder(&context.plan.output, context.stage_kind());
        let path = folder.join("metrics.jsonl");
        let file = context.speaks().then(|| StepLines::open(&path, Step(run.step))).transpose();
        let file = file.map_err(|source| TrainerError::Io { operation: "open", path: path.clone(), source })?;
        let file = file.map(|(file, _)| file);
        let trace = (run.settings.profile_steps > 0).then(|| {
            let name = format!("trace-rank-{:03}.json", context.rank().0);
            Trace::new(context.rank(), run.settings.profile_steps, folder.join(name))
        });
        memory::reset_peak(context.device);
        Ok(Self {
            path,
            file,
            trace,
            share: run.settings.global_batch as f64 / (run.slots.end - run.slots.start) as f64,
            peak_flop_per_s: peak::flop_per_s(context.device, torch::kind(run.settings.precision)),
            first_step: run.step,
            last: None,
            all: Window::new(),
            recent: Window::new(),
            stall: Duration::ZERO,
            all_stall: Duration::ZERO,
            compared: Duration::ZERO,
            agreed: Duration::ZERO,
            own: VecDeque::with_capacity(OWN),
            skipped: 0,
            skipped_steps: 0,
            skipped_in_a_row: 0,
            last_loss: f64::NAN,
            evaluated: Vec::new(),
            evaluation: None,
            evaluations: (0, Duration::ZERO),
        })
    }

    /// The training stood still for a checkpoint.
    pub(super) fn stalled(&mut self, stall: Duration) {
        self.stall += stall;
        self.all_stall += stall;
    }

    /// The training stood still while the ranks compared what they have.
    pub(super) fn compared(&mut self, took: Duration) {
        self.compared += took;
    }

    /// The ranks told each other whether they go on. Who was done first waited in this for the last, as it would have in the next step.
    pub(super) fn agreed(&mut self, took: Duration) {
        self.agreed += took;
    }

    /// The training stood still for an evaluation, which is no part of any step.
    pub(super) fn evaluated(&mut self, run: &Training<'_, '_>, found: Vec<Evaluated>, took: Duration) {
        self.evaluated = found;
        self.evaluation = Some(self.evaluation.unwrap_or_default() + took);
        self.evaluations = (self.evaluations.0 + 1, self.evaluations.1 + took);
        self.all.paused += took;
        self.recent.paused += took;
        // The next step's time is its own.
        self.last = None;
        run.context.report(self.standing(run));
    }

    /// Where the training stands between two steps.
    pub(super) fn standing(&self, run: &Training<'_, '_>) -> Progress {
        let mut progress = run.context.progress(run.step, run.total);
        progress.loss = self.last_loss.is_finite().then_some(self.last_loss);
        progress.skipped_samples = self.skipped;
        progress.checkpoint = commits::newest(run.context);
        progress.evaluated.clone_from(&self.evaluated);
        progress
    }

    /// Samples of a step were broken, over all ranks.
    pub(super) fn skipped(&mut self, samples: u64) {
        self.skipped += samples;
    }

    /// Waits for a step's figures and writes them down.
    ///
    /// # Errors
    /// When the step failed, or was not finite and the recipe bears no more of these.
    pub(super) fn read(&mut self, run: &Training<'_, '_>, begun: Begun) -> Result<(), TrainerError> {
        let Begun { step, output, learning_rate, data_wait, flops } = begun;
        let output = waited(run, output)?;
        if !output.updated {
            run.context.collective.finish()?;
            return Err(TrainerError::NotUpdated { step: step.0 });
        }
        let nonfinite = output.nonfinite();
        self.bear(run, step, &output, nonfinite)?;
        // By its own clock: on a CPU it is read when the next one has been computed.
        let step_s = self.last.as_ref().map_or_else(|| Ok(output.length()), |last| output.ended_after(last))?;
        let row = StepMetrics {
            step,
            generation: run.context.plan.generation,
            loss: output.loss,
            learning_rate,
            grad_norm: output.grad_norm,
            skipped_nonfinite: nonfinite,
            logit_scale: output.logit_scale,
            logit_bias: output.logit_bias,
            step_s: step_s.as_secs_f64(),
            data_wait_s: data_wait.as_secs_f64(),
            exposed_communication_s: output.times.exposed_communication().as_secs_f64(),
            checkpoint_stall_s: std::mem::take(&mut self.stall).as_secs_f64(),
            evaluation_s: self.evaluation.take().map(|took| took.as_secs_f64()),
        };
        if self.own.len() == OWN {
            self.own.pop_front();
        }
        self.own.push_back(output.times.own());
        let flops = flops * self.share;
        self.all.add(data_wait, &output.times, flops);
        self.recent.add(data_wait, &output.times, flops);
        self.last_loss = row.loss;
        if let Some(file) = &mut self.file {
            let failed = |source| TrainerError::Io { operation: "write", path: self.path.clone(), source };
            file.append(std::slice::from_ref(&row)).map_err(failed)?;
        }
        if self.recent.began.elapsed() >= REPORT_EVERY || step.0 == run.total || step.0 == self.first_step + 1 {
            self.report(run, &row);
        }
        self.profile(step, &output)?;
        self.last = Some(output);
        Ok(())
    }

    /// Whether the recipe bears that a step is not finite. Nothing was updated then: the device saw the same.
    fn bear(
        &mut self,
        run: &Training<'_, '_>,
        step: Step,
        output: &StepOutput,
        nonfinite: Option<NonFinite>,
    ) -> Result<(), TrainerError> {
        let Some(what) = nonfinite else {
            self.skipped_in_a_row = 0;
            return Ok(());
        };
        let (StepOutput { loss, grad_norm, .. }, before) = (output, self.skipped_in_a_row);
        if before >= run.settings.skip_nonfinite {
            let (step, loss, grad_norm) = (step.0, *loss, *grad_norm);
            return Err(TrainerError::Diverged { step, loss, grad_norm, skipped: before });
        }
        self.skipped_in_a_row += 1;
        self.skipped_steps += 1;
        if run.context.speaks() {
            let (in_a_row, limit) = (self.skipped_in_a_row, run.settings.skip_nonfinite);
            tracing::warn!(step = step.0, %what, loss, grad_norm, in_a_row, limit, "a step is not finite: it updates nothing");
        }
        Ok(())
    }

    fn profile(&mut self, step: Step, output: &StepOutput) -> Result<(), TrainerError> {
        if let Some(trace) = &mut self.trace
            && let Some(path) = trace.step(step, output)?
        {
            tracing::info!(trace = %path.display(), "wrote the profile: open it in ui.perfetto.dev");
            self.trace = None;
        }
        Ok(())
    }

    fn report(&mut self, run: &Training<'_, '_>, row: &StepMetrics) {
        let recent = std::mem::replace(&mut self.recent, Window::new());
        let seconds = recent.seconds();
        let mut progress = run.context.progress(row.step.0, run.total);
        progress.loss = Some(row.loss).filter(|loss| loss.is_finite());
        progress.learning_rate = Some(row.learning_rate);
        progress.grad_norm = Some(row.grad_norm).filter(|norm| norm.is_finite());
        progress.logit_scale = row.logit_scale;
        progress.samples_per_s = Some(samples(run, recent.steps) / seconds);
        progress.data_wait_share = Some(recent.wait.as_secs_f64() / seconds);
        progress.exposed_communication_share = Some(recent.exposed.as_secs_f64() / seconds);
        progress.step_s = Some(seconds / recent.steps as f64);
        // Of a few steps, the first among them, it says nothing.
        let own = median(&self.own).filter(|_| self.own.len() >= OWN / 2);
        progress.own_step_s = own.map(|own| own.as_secs_f64());
        progress.model_flop_per_s = Some(recent.flops / seconds);
        progress.mfu = self.mfu(run, &recent);
        progress.peak_memory_bytes = memory::peak_bytes(run.context.device);
        progress.skipped_samples = self.skipped;
        progress.checkpoint = commits::newest(run.context);
        progress.evaluated.clone_from(&self.evaluated);
        run.context.report(progress);
    }

    fn mfu(&self, run: &Training<'_, '_>, window: &Window) -> Option<f64> {
        let most = self.peak_flop_per_s? * f64::from(run.context.world().0);
        Some(window.flops / window.seconds() / most)
    }

    pub(super) fn summary(&self, run: &Training<'_, '_>) -> serde_json::Value {
        let (seconds, steps) = (self.all.seconds(), run.step - self.first_step);
        let share = |part: Duration| format!("{:.1} %", 100.0 * part.as_secs_f64() / seconds);
        let mut columns = vec![
            ("loss", format!("{:.4}", self.last_loss)),
            ("samples/s", format!("{:.0}", samples(run, steps) / seconds)),
            ("s/step", format!("{:.3}", seconds / steps.max(1) as f64)),
            ("model TFLOP/s", format!("{:.3}", self.all.flops / seconds / 1e12)),
        ];
        if let Some(mfu) = self.mfu(run, &self.all) {
            columns.push(("MFU", format!("{:.1} %", 100.0 * mfu)));
        }
        columns.push(("waiting for data", share(self.all.wait)));
        columns.push(("exposed communication", share(self.all.exposed)));
        columns.push(("checkpoint stall", share(self.all_stall)));
        if self.compared > Duration::ZERO {
            columns.push(("comparing replicas", format!("{:.3} %", 100.0 * self.compared.as_secs_f64() / seconds)));
        }
        if run.context.world().0 > 1 {
            // An upper bound: waits for slower ranks are in it.
            columns.push(("fault tolerance", share(self.all_stall + self.compared + self.agreed)));
        }
        if self.evaluations.0 > 0 {
            // Beside the training's time, not in it.
            let (count, took) = self.evaluations;
            columns.push(("evaluations beside it", format!("{count} in {:.1} s", took.as_secs_f64())));
        }
        if self.skipped > 0 {
            columns.push(("broken samples replaced", self.skipped.to_string()));
        }
        if self.skipped_steps > 0 {
            columns.push(("steps skipped, not finite", self.skipped_steps.to_string()));
        }
        if let Some(bytes) = memory::peak_bytes(run.context.device) {
            columns.push(("peak memory", format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))));
        }
        let (names, values): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
        let title = format!("training ({steps} steps, {seconds:.1} s)");
        let table = serde_json::json!({ "title": title, "columns": names, "rows": [values] });
        let notes: Vec<String> = self.evaluated.iter().map(|found| format!("evaluated at {found}")).collect();
        serde_json::json!({ "tables": [table], "notes": notes, "evaluated": self.evaluated })
    }
}

/// The median; absent of nothing.
fn median(times: &VecDeque<Duration>) -> Option<Duration> {
    let mut sorted: Vec<Duration> = times.iter().copied().collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

/// How many samples so many steps take over all ranks.
fn samples(run: &Training<'_, '_>, steps: u64) -> f64 {
    (steps * run.settings.global_batch) as f64
}
/// Waits for the device to be done with a step. Alone there are no peers that it could be waiting for.
fn waited(run: &Training<'_, '_>, begun: StepBegun) -> Result<StepOutput, TrainerError> {
    if run.context.world().0 == 1 {
        return begun.wait();
    }
    run.context.pulse.waits();
    let output = begun.wait();
    run.context.pulse.returned();
    output
}
