//! Why the coordinator did not do what it was asked.

use crate::{
    job::{RecordError, Refused},
    store::StoreError,
};
use common::ids::{JobId, Step, WorkerId};
use std::{path::PathBuf, time::Duration};

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// There is no such job.
    #[error("there is no job {0}: `llm2clip ps` lists the jobs")]
    UnknownJob(JobId),
    /// There is no such worker.
    #[error("there is no worker {0}: `llm2clip workers` lists them")]
    UnknownWorker(WorkerId),
    /// The id belongs to another job.
    #[error("job {0} exists with another recipe or number of trainers: submit it under another id")]
    Exists(JobId),
    /// Two jobs would write into one folder.
    #[error("job {job} writes to {} already: stop it first, or give this one another `output` (or `checkpoints`)", place.display())]
    OutputInUse {
        /// The other job.
        job: JobId,
        /// The folder, or the URL of checkpoints.
        place: PathBuf,
    },
    /// A job of no ranks.
    #[error("job {0} asks for 0 trainers: it needs at least 1")]
    NoRanks(JobId),
    /// More or fewer ranks than its recipe allows.
    #[error("job {job} asks for {asked} trainers, and `[elastic]` of its recipe allows {least} to {most}")]
    Ranks {
        /// The job.
        job: JobId,
        /// What was asked for.
        asked: u32,
        /// `elastic.min_ranks`.
        least: u32,
        /// `elastic.max_ranks`.
        most: u32,
    },
    /// The request does not fit the job's state.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// There is no checkpoint of the step that was asked for.
    #[error("job {job} has no checkpoint of step {step}: {} is missing{}", manifest.display(), others(steps))]
    NoCheckpoint {
        /// The job.
        job: JobId,
        /// What was asked for.
        step: Step,
        /// What would make it one.
        manifest: PathBuf,
        /// The steps there are.
        steps: Vec<Step>,
    },
    /// A worker that is not taken in; see [`common::refusal`].
    #[error("{0}")]
    RefusedWorker(String),
    /// The session is no longer the worker's.
    #[error("worker {0} has another session, or its lease lapsed: register again")]
    SessionOver(WorkerId),
    /// The loop has ended.
    #[error("the coordinator is shutting down, or no longer leads")]
    Closed,
    /// Another coordinator leads, or soon will.
    #[error("this coordinator no longer leads: ask again, and another one answers")]
    Deposed,
    /// The loop did not answer in time.
    #[error("the coordinator did not answer within {} s: its store may be slow", .0.as_secs())]
    Slow(Duration),
    /// The store failed; the loop ends, as nothing it decides could be kept.
    #[error("the store failed: {0}")]
    Store(#[from] StoreError),
    /// A record cannot be read.
    #[error("cannot read {key}: {source}")]
    Record {
        /// Where it is stored.
        key: String,
        /// Why not.
        source: RecordError,
    },
}

fn others(steps: &[Step]) -> String {
    if steps.is_empty() {
        return "; there is none at all".to_owned();
    }
    let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
    format!("; there are {}", steps.join(", "))
}
