//! What each simulated trainer does by itself as time passes: starting, signals, its lease, commits, writes.

use super::{
    storage::ManifestFile,
    trainer::{LEASE, Phase},
    world::{At, World},
};
use common::manifest::paths;
use std::time::Duration;
use worker::supervisor::{Exit, ipc::Report};

impl World {
    /// A moment of every process.
    pub fn live(&mut self) {
        for at in self.living() {
            self.signals(at);
            self.boots(at);
            self.lease(at);
            self.commits(at);
            self.writes(at);
            self.plans(at);
        }
    }

    fn signals(&mut self, at: At) {
        let now = self.now;
        let Some(process) = self.process(at) else { return };
        let due = |time: Option<Duration>| time.is_some_and(|time| time <= now);
        if due(process.signals.kill_at) {
            self.die(at, Exit::Signal(9), "SIGKILL after the grace");
        } else if due(process.signals.term_at) && !process.signals.deaf {
            self.die(at, Exit::Signal(15), "SIGTERM");
        }
    }

    fn boots(&mut self, at: At) {
        let now = self.now;
        let Some(process) = self.process(at) else { return };
        if matches!(process.phase, Phase::Booting { until } if until <= now) && process.link.gone_since.is_none() {
            process.phase = Phase::Idle;
            if let Some(hello) = process.hello() {
                self.report_once(at, hello);
            }
        }
    }

    fn lease(&mut self, at: At) {
        let now = self.now;
        let Some(process) = self.process(at) else { return };
        process.link.lapsed |= process.link.gone_since.is_some_and(|since| now - since >= LEASE);
        let works = matches!(process.phase, Phase::Working(_));
        if process.link.lapsed && !works {
            self.die(at, Exit::Code(0), "no agent for the lease");
        }
    }

    /// Orders to create manifests, as the real trainer's commit thread obeys them.
    fn commits(&mut self, at: At) {
        let (now, takes) = (self.now, self.rng.millis(20, 400));
        let Some(process) = self.process(at) else { return };
        while let Some((step, manifest)) = process.link.manifests.pop_front() {
            if process.link.running() == Some(manifest.generation) {
                process.commits.push((now + takes, step, manifest));
            }
        }
        let due = process.commits.iter().position(|(time, ..)| *time <= now);
        let Some((_, step, manifest)) = due.map(|due| process.commits.remove(due)) else { return };
        let (generation, job) = (manifest.generation, manifest.job.clone());
        let output = self.history.output(&job);
        let folder = paths::checkpoint_folder(&output, &manifest.stage, step);
        let file = ManifestFile { manifest: *manifest, machine: at.0, durable_at: now };
        match self.storage.create(folder, file) {
            Ok(()) => {
                self.say(&format!("trainer {} commits step {step} of {job} generation {generation}", at.1));
                let Some(process) = self.process(at) else { return };
                process.link.report(Report::CheckpointCommitted { generation, step });
                if process.link.running() == Some(generation) {
                    process.committed = process.committed.max(Some(step));
                }
            }
            Err(error) => self.say(&format!("trainer {} could not commit step {step}: {error}", at.1)),
        }
    }

    /// Shares that became durable are reported.
    fn writes(&mut self, at: At) {
        let now = self.now;
        let Some(process) = self.process(at) else { return };
        let (done, left) = std::mem::take(&mut process.writes).into_iter().partition(|write| write.durable_at <= now);
        process.writes = left;
        for write in done {
            process.link.report(write.report);
        }
    }

    fn plans(&mut self, at: At) {
        let now = self.now;
        let Some(process) = self.process(at) else { return };
        if !matches!(process.phase, Phase::Idle) || process.link.lapsed {
            return;
        }
        let Some(plan) = process.link.next_plan() else { return };
        process.committed = None;
        // Of another stage it is forgotten.
        process.held = process.held.take().filter(|(stage, _)| *stage == plan.stage);
        let (job, generation, rank) = (plan.job.clone(), plan.generation, plan.rank);
        process.phase = Phase::Joining { plan, since: now };
        self.say(&format!("trainer {} is rank {rank} of {job} generation {generation}", at.1));
    }
}
