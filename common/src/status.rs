//! What is reported: typed causes and reasons, shared by the log, the wire and the screen.

use crate::{
    alarm::StorageAlarm,
    cause::{Diverged, OutOfMemory, Stuck},
    ids::{Generation, JobId, Rank, Slot, Step, WorkerId},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf};

/// How far a rank is in its stage. Sent at most once a second, never in the step's way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The membership it belongs to.
    pub generation: Generation,
    /// The stage, from 0.
    pub stage: usize,
    /// What is being done besides steps ("index data", "load weights"); absent once steps run.
    pub activity: Option<String>,
    /// Steps done: optimizer steps in `clip`, batches elsewhere.
    pub step: Step,
    /// Steps in all; 0 while that is not known.
    pub steps: u64,
    /// The loss of the newest step, where the stage has one.
    pub loss: Option<f64>,
    /// The learning rate of the newest step.
    pub learning_rate: Option<f64>,
    /// Norm of the gradient before clipping.
    pub grad_norm: Option<f64>,
    /// exp of the logit scale parameter.
    pub logit_scale: Option<f64>,
    /// Samples a second over all ranks since the last report.
    pub samples_per_s: Option<f64>,
    /// The share of the time in which the step waited for data, 0 to 1.
    pub data_wait_share: Option<f64>,
    /// Seconds a step since the last report.
    pub step_s: Option<f64>,
    /// Seconds that recent steps took without waits for other ranks (their median): what this rank computed and loaded itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_step_s: Option<f64>,
    /// The share of the time in which communication kept computation waiting, 0 to 1.
    #[serde(default)]
    pub exposed_communication_share: Option<f64>,
    /// Floating-point operations a second that the model needs, over all ranks: three forward passes a trained sample, one an
    /// embedded one.
    #[serde(default)]
    pub model_flop_per_s: Option<f64>,
    /// `model_flop_per_s` as a share of what all devices can do at most; absent where that is not known.
    #[serde(default)]
    pub mfu: Option<f64>,
    /// The most memory at a time: a GPU's tensors, or the process's resident memory on a CPU. Of the reporting rank.
    #[serde(default)]
    pub peak_memory_bytes: Option<u64>,
    /// Samples that were skipped as broken so far.
    pub skipped_samples: u64,
    /// The newest step whose checkpoint is committed.
    pub checkpoint: Option<Step>,
    /// What the newest evaluation during the training found; empty before the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evaluated: Vec<Evaluated>,
}

/// What an evaluation during a training found on one data set, as shares from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    /// How many steps the weights had seen.
    pub step: Step,
    /// The data set.
    pub data: String,
    /// The figures.
    #[serde(flatten)]
    pub measured: Measured,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "measured", rename_all = "kebab-case")]
pub enum Measured {
    /// Images and texts.
    Retrieval {
        /// The caption column.
        captions: String,
        /// From images to texts.
        image_to_text: Recall,
        /// From texts to images.
        text_to_image: Recall,
    },
    /// Images and classes.
    ZeroShot {
        /// The set of templates.
        templates: String,
        /// The share of images whose class stands first.
        top_1: f64,
        /// … among the first five.
        top_5: f64,
    },
}

/// The shares of queries with one of their own targets among the first 1, 5 and 10.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    /// First.
    pub r1: f64,
    /// Among the first five.
    pub r5: f64,
    /// Among the first ten.
    pub r10: f64,
}

/// As one line: the step, the data set, and the first of its figures.
impl fmt::Display for Evaluated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: &f64| 100.0 * share;
        write!(f, "step {}: {}", self.step, self.data)?;
        match &self.measured {
            Measured::Retrieval { captions, image_to_text, text_to_image } => write!(
                f,
                " `{captions}` R@1 {:.1} % image to text, {:.1} % text to image",
                percent(&image_to_text.r1),
                percent(&text_to_image.r1)
            ),
            Measured::ZeroShot { templates, top_1, top_5 } => {
                write!(f, " zero-shot `{templates}` top-1 {:.1} %, top-5 {:.1} %", percent(top_1), percent(top_5))
            }
        }
    }
}

impl Progress {
    /// Nothing but where the stage stands.
    pub fn at(generation: Generation, stage: usize, step: Step, steps: u64) -> Self {
        Self {
            generation,
            stage,
            activity: None,
            step,
            steps,
            loss: None,
            learning_rate: None,
            grad_norm: None,
            logit_scale: None,
            samples_per_s: None,
            data_wait_share: None,
            step_s: None,
            own_step_s: None,
            exposed_communication_share: None,
            model_flop_per_s: None,
            mfu: None,
            peak_memory_bytes: None,
            skipped_samples: 0,
            checkpoint: None,
            evaluated: Vec::new(),
        }
    }
}

/// Why a trainer or a worker was lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum FailureCause {
    /// The kernel reports that a signal ended the process.
    Signal {
        /// Its number, such as 9.
        signal: i32,
    },
    /// The process ended by itself with a code other than 0 and without a word.
    ExitCode {
        /// The code; 101 is a Rust panic.
        code: i32,
    },
    /// The trainer said what was wrong before it ended.
    Error {
        /// The message: what, where, what to do.
        message: String,
    },
    /// The program could not be started.
    Spawn {
        /// Why.
        message: String,
    },
    /// The worker's lease lapsed or its process ended.
    WorkerLost,
    /// It got no further, and was ended for it.
    Hung(Box<Stuck>),
    /// Memory ran out.
    OutOfMemory(OutOfMemory),
    /// What is trained is not the same on all ranks.
    Diverged(Diverged),
}

impl fmt::Display for FailureCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FailureCause::Signal { signal } => write!(f, "killed by signal {signal}{}", signal_name(*signal)),
            FailureCause::ExitCode { code: 101 } => write!(f, "panicked (exit code 101)"),
            FailureCause::ExitCode { code } => write!(f, "ended with exit code {code}"),
            FailureCause::Error { message } => f.write_str(message),
            FailureCause::Spawn { message } => write!(f, "could not be started: {message}"),
            FailureCause::WorkerLost => f.write_str("its worker was lost"),
            FailureCause::Hung(stuck) => stuck.fmt(f),
            FailureCause::OutOfMemory(memory) => memory.fmt(f),
            FailureCause::Diverged(diverged) => diverged.fmt(f),
        }
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        2 => " (SIGINT)",
        4 => " (SIGILL)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        8 => " (SIGFPE)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        15 => " (SIGTERM)",
        _ => "",
    }
}

/// One loss of a rank, as `why` tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// When the coordinator learned of it.
    pub at: Timestamp,
    /// The membership it ended.
    pub generation: Generation,
    /// Which rank; absent when it had none yet.
    pub rank: Option<Rank>,
    /// On which worker.
    pub worker: WorkerId,
    /// Its process; absent when it never started.
    pub pid: Option<u32>,
    /// Why.
    pub cause: FailureCause,
    /// The newest step it had reported.
    pub step: Option<Step>,
    /// The end of its log, oldest line first.
    pub last_lines: Vec<String>,
    /// The log file.
    pub log: Option<PathBuf>,
}

/// Why a job does not run yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum WaitReason {
    /// Too few trainers are free.
    NotEnoughTrainers {
        /// How many the job needs.
        needed: u32,
        /// How many are free.
        free: u32,
    },
    /// Trainers were ordered and have not reported their address yet.
    TrainersStarting {
        /// How many reported.
        ready: u32,
        /// How many were ordered.
        ordered: u32,
    },
    /// The next try is due later.
    BackOff {
        /// When.
        until: Timestamp,
    },
    /// Ranks were lost with their machine; the others hold what they have in memory until there are places in their stead.
    Regrouping {
        /// How many hold it.
        holding: u32,
        /// How many places are missing.
        missing: u32,
    },
    /// Trainers of the generation before have not all ended yet.
    TrainersEnding {
        /// How many are left.
        left: u32,
    },
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WaitReason::NotEnoughTrainers { needed, free } => write!(f, "needs {needed} trainers, {free} are free"),
            WaitReason::TrainersStarting { ready, ordered } => write!(f, "{ready} of {ordered} trainers have started"),
            WaitReason::BackOff { .. } => f.write_str("waits before the next try"),
            WaitReason::Regrouping { holding, missing } => {
                write!(f, "{holding} trainers wait with all that they have in memory, {missing} places are missing")
            }
            WaitReason::TrainersEnding { left } => write!(f, "{left} trainers of the try before are ending"),
        }
    }
}

/// Where a job is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "kebab-case")]
pub enum Phase {
    /// It cannot go on yet.
    Waiting {
        /// Why.
        reason: WaitReason,
    },
    /// Its trainers have their plans.
    Running,
    /// It was asked to stop and writes a last checkpoint.
    Stopping,
    /// Stopped by a user; `resume` goes on.
    Stopped,
    /// All stages are done.
    Succeeded,
    /// It gave up; `resume` tries again from the newest checkpoint.
    Failed {
        /// The exit code that `run` and `launch --follow` end with.
        exit_code: u8,
        /// One sentence.
        message: String,
    },
}

impl Phase {
    /// The exit code of a job that ended; absent while it can still change by itself.
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Phase::Succeeded => Some(0),
            Phase::Stopped => Some(4),
            Phase::Failed { exit_code, .. } => Some(*exit_code),
            Phase::Waiting { .. } | Phase::Running | Phase::Stopping => None,
        }
    }
}

/// A job as the outside sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its id.
    pub job: JobId,
    /// Where it is in its life.
    pub phase: Phase,
    /// The newest membership.
    pub generation: Generation,
    /// The stage that runs, from 0; the number of stages when all are done.
    pub stage: usize,
    /// Every stage of the recipe.
    pub stages: Vec<StageStatus>,
    /// Who takes part in the newest membership.
    pub ranks: Vec<RankStatus>,
    /// Trainers that stand ready beside them.
    #[serde(default)]
    pub spares: u32,
    /// Why there are no new checkpoints; absent while there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alarm: Option<StorageAlarm>,
    /// Everything that was lost, oldest first.
    pub failures: Vec<Failure>,
    /// The job's folder.
    pub output: PathBuf,
    /// The folder or URL where its checkpoints are; absent when that is the job's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<PathBuf>,
    /// When it was submitted.
    pub created: Timestamp,
    /// When it last changed.
    pub updated: Timestamp,
}

/// A stage of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageStatus {
    /// `embed`, `clip`, `eval`.
    pub kind: String,
    /// Whether it is done.
    pub done: bool,
    /// What it said at its end: a JSON document of its own, such as the table of retrieval figures.
    pub summary: Option<serde_json::Value>,
    /// The newest committed checkpoint.
    pub checkpoint: Option<Step>,
    /// The newest report; absent before the first.
    pub progress: Option<Progress>,
}

/// A member of a generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankStatus {
    /// Its rank.
    pub rank: Rank,
    /// Where it runs.
    pub worker: WorkerId,
    /// Its place there.
    pub slot: Slot,
    /// Its process; absent before it started.
    pub pid: Option<u32>,
    /// Where its peers reach it; absent before it said so.
    pub peer: Option<String>,
    /// The newest step that it reported.
    #[serde(default)]
    pub step: Option<Step>,
    /// How many seconds of its own, without waits for others, its recent steps took.
    #[serde(default)]
    pub own_step_s: Option<f64>,
    /// Whether that is more than the recipe's `straggler_factor` times the median of the others.
    #[serde(default)]
    pub straggles: bool,
}

/// A worker as the outside sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its id.
    pub worker: WorkerId,
    /// What it has.
    pub inventory: Inventory,
    /// Whether its session is up.
    pub connected: bool,
    /// When it was last heard of.
    pub seen: Timestamp,
    /// The job that each busy slot works for.
    pub busy: Vec<(Slot, JobId)>,
    /// Why it gets no new trainers; absent when it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub barred: Option<Barred>,
}

/// Why a worker that is there gets no new trainers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "barred", rename_all = "kebab-case")]
pub enum Barred {
    /// A user said so.
    Drained,
    /// Trainers on it were lost too often.
    Quarantined {
        /// Until when.
        until: Timestamp,
        /// How often lately.
        faults: u32,
    },
    /// It said that its machine is being taken away.
    Leaving,
}

impl fmt::Display for Barred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Barred::Drained => f.write_str("drained"),
            Barred::Quarantined { faults, .. } => write!(f, "in quarantine after {faults} faults"),
            Barred::Leaving => f.write_str("leaving"),
        }
    }
}

/// What a machine has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// The machine's name.
    pub host: String,
    /// How many trainers it runs at a time.
    pub trainers: u32,
    /// Names of its GPUs; empty means that trainers compute on the CPU.
    pub gpus: Vec<String>,
    /// CPU cores that this worker may use.
    pub cores: u32,
    /// Main memory in bytes.
    pub memory_bytes: u64,
    /// The program's version.
    pub version: String,
}

/// Something that happened to a job, as `events` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number within the job, from 1.
    pub sequence: u64,
    /// When.
    pub at: Timestamp,
    /// In which membership.
    pub generation: Generation,
    /// One sentence for people.
    pub message: String,
    /// What kind of thing, in kebab-case, for machines.
    pub kind: String,
}
