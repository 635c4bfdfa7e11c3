//! Hashes, writes and syncs a rank's files, behind the training.

use super::{CheckpointError, HostCopy, file};
use common::{ids::Step, manifest::Part};
use std::{
    path::PathBuf,
    sync::mpsc::{SyncSender, sync_channel},
    thread::JoinHandle,
    time::Instant,
};

struct Job {
    folder: PathBuf,
    step: Step,
    copy: HostCopy,
}

/// A thread that writes one file after the other. One may wait while another is written; a third waits in
/// [`Writer::submit`], so that slow storage slows the training down instead of filling the memory.
pub struct Writer {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<Result<(), CheckpointError>>>,
}

impl Writer {
    /// Starts the thread. `written` is called on it after each file is on storage.
    pub fn start(written: impl Fn(Step, Part) + Send + 'static) -> Self {
        let (jobs, queue) = sync_channel::<Job>(1);
        let thread = std::thread::spawn(move || {
            for job in queue {
                let started = Instant::now();
                let part = file::write(&job.folder, job.copy.rank, &job.copy.tensors)?;
                let seconds = started.elapsed().as_secs_f64();
                tracing::info!(step = job.step.0, bytes = part.bytes, seconds, "wrote a checkpoint file");
                written(job.step, part);
            }
            Ok(())
        });
        Self { jobs: Some(jobs), thread: Some(thread) }
    }

    /// Hands a copy over to be written into a checkpoint's folder.
    ///
    /// # Errors
    /// The error of an earlier file, when there was one.
    pub fn submit(&mut self, folder: PathBuf, step: Step, copy: HostCopy) -> Result<(), CheckpointError> {
        let jobs = self.jobs.as_ref().ok_or(CheckpointError::WriterGone)?;
        match jobs.send(Job { folder, step, copy }) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.finish().err().unwrap_or(CheckpointError::WriterGone)),
        }
    }

    /// Waits until everything is on storage.
    ///
    /// # Errors
    /// The first file's that could not be written.
    pub fn finish(&mut self) -> Result<(), CheckpointError> {
        self.jobs = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(CheckpointError::WriterGone),
            None => Ok(()),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // A stage that failed elsewhere still leaves whole files behind.
        if let Err(error) = self.finish() {
            tracing::warn!(%error, "a checkpoint was not written");
        }
    }
}
