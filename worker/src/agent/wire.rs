//! Between the wire's types and the agent's.

use super::message::{Ended, Ready, TrainerRef, WorkerMessage, WorkerOrder, WorkerReport};
use common::ids::{Generation, InvalidName, Slot, Step, WorkerId};
use proto::{
    leader::Term,
    v1::{self, from_worker, to_worker},
    version,
};
use serde::Serialize;
use std::time::Duration;

/// What is wrong with a message of the coordinator.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// It has no content that this program knows.
    #[error("an order of a kind that this worker does not know: update llm2clip-worker")]
    Unknown,
    /// It does not say which trainer it is for.
    #[error("an order names no trainer")]
    NoTrainer,
    /// It names something that cannot be.
    #[error(transparent)]
    Name(#[from] InvalidName),
}

/// A message of the coordinator.
#[derive(Debug, PartialEq)]
pub enum Incoming {
    /// The session is accepted.
    Registered {
        /// The worker counts as lost when nothing was heard of it for so long.
        lease: Duration,
    },
    /// An order.
    Order(Box<WorkerOrder>),
}

/// Reads a message of the coordinator.
///
/// # Errors
/// When it cannot be said whom it is for.
pub fn decode(message: v1::ToWorker) -> Result<Incoming, WireError> {
    use to_worker::Message;
    let order = match message.message.ok_or(WireError::Unknown)? {
        Message::Registered(registered) => {
            return Ok(Incoming::Registered { lease: Duration::from_millis(registered.lease_ms) });
        }
        Message::StartTrainer(start) => {
            WorkerOrder::Start { trainer: trainer(start.trainer)?, output: start.output.into() }
        }
        Message::SendPlan(send) => {
            let trainer = trainer(send.trainer)?;
            match serde_json::from_str(&send.plan) {
                Ok(plan) => WorkerOrder::Plan { trainer, plan },
                Err(error) => unreadable(trainer, "plan", &error),
            }
        }
        Message::StopTrainer(stop) => WorkerOrder::Stop { trainer: trainer(stop.trainer)? },
        Message::EndTrainer(end) if !end.stuck.is_empty() => {
            let trainer = trainer(end.trainer)?;
            match serde_json::from_str(&end.stuck) {
                Ok(stuck) => WorkerOrder::EndStuck { trainer, stuck },
                Err(error) => unreadable(trainer, "finding of a stuck trainer", &error),
            }
        }
        Message::EndTrainer(end) => {
            WorkerOrder::End { trainer: trainer(end.trainer)?, grace: Duration::from_millis(end.grace_ms) }
        }
        Message::CommitManifest(commit) => {
            let trainer = trainer(commit.trainer)?;
            match serde_json::from_str(&commit.manifest) {
                Ok(manifest) => WorkerOrder::Commit { trainer, step: Step(commit.step), manifest },
                Err(error) => unreadable(trainer, "manifest", &error),
            }
        }
    };
    Ok(Incoming::Order(Box::new(order)))
}

fn unreadable(trainer: TrainerRef, what: &str, error: &serde_json::Error) -> WorkerOrder {
    let message = format!("the coordinator's {what} cannot be read: {error}; update llm2clip-worker to its version");
    WorkerOrder::Unreadable { trainer, message }
}

fn trainer(reference: Option<v1::TrainerRef>) -> Result<TrainerRef, WireError> {
    let v1::TrainerRef { job, generation, slot } = reference.ok_or(WireError::NoTrainer)?;
    Ok(TrainerRef { job: job.parse()?, generation: Generation(generation), slot: Slot(slot) })
}

/// Writes a message to the coordinator. `newest` is the newest term of a leader that this worker has seen.
pub fn encode(worker: &WorkerId, newest: Option<Term>, message: WorkerMessage) -> v1::FromWorker {
    use from_worker::Message;
    let message = match message {
        WorkerMessage::Register { identity, inventory, trainers } => {
            let (lowest_protocol, protocol) = version::SPOKEN;
            Message::Register(v1::Register {
                worker: worker.to_string(),
                inventory: json(&inventory),
                trainers: trainers.into_iter().map(ready).collect(),
                term: newest.map(|term| term.0),
                lowest_protocol,
                protocol,
                instance: identity.instance,
                incarnation: identity.incarnation,
            })
        }
        WorkerMessage::Heartbeat => Message::Heartbeat(v1::Heartbeat {}),
        WorkerMessage::Leaving => Message::Leaving(v1::Leaving {}),
        WorkerMessage::Report(report) => encode_report(report),
    };
    v1::FromWorker { message: Some(message) }
}

fn encode_report(report: WorkerReport) -> from_worker::Message {
    use from_worker::Message;
    match report {
        WorkerReport::Ready(content) => Message::TrainerReady(ready(content)),
        WorkerReport::Progress { trainer, progress } => {
            Message::TrainerProgress(v1::TrainerProgress { trainer: name(trainer), progress: json(&progress) })
        }
        WorkerReport::Pulse { trainer, pulse } => {
            Message::TrainerPulse(v1::TrainerPulse { trainer: name(trainer), pulse: json(&pulse) })
        }
        WorkerReport::CheckpointWritten { trainer, rank, step, share } => {
            let (trainer, share) = (name(trainer), json(&share));
            Message::CheckpointWritten(v1::CheckpointWritten { trainer, rank: rank.0, step: step.0, share })
        }
        WorkerReport::StorageTrouble { trainer, trouble } => {
            Message::StorageTrouble(v1::StorageTrouble { trainer: name(trainer), trouble: json(&trouble) })
        }
        WorkerReport::CheckpointCommitted { trainer, step } => {
            Message::CheckpointCommitted(v1::CheckpointCommitted { trainer: name(trainer), step: step.0 })
        }
        WorkerReport::StageFinished { trainer, rank, summary, stopped } => {
            let summary = summary.map(|summary| json(&summary)).unwrap_or_default();
            Message::StageFinished(v1::StageFinished { trainer: name(trainer), rank: rank.0, summary, stopped })
        }
        WorkerReport::PeersLost { trainer, rank, step, message } => Message::PeersLost(v1::PeersLost {
            trainer: name(trainer),
            rank: rank.0,
            step: step.map(|step| step.0),
            message,
        }),
        WorkerReport::Ended(Ended { trainer, cause, pid, last_lines, log }) => {
            Message::TrainerEnded(v1::TrainerEnded {
                trainer: name(trainer),
                cause: cause.map(|cause| json(&cause)),
                pid: pid.unwrap_or_default(),
                last_lines,
                log: log.map(|log| log.display().to_string()).unwrap_or_default(),
            })
        }
    }
}

fn ready(Ready { trainer, pid, peer }: Ready) -> v1::TrainerReady {
    v1::TrainerReady { trainer: name(trainer), pid, peer }
}

fn name(TrainerRef { job, generation, slot }: TrainerRef) -> Option<v1::TrainerRef> {
    Some(v1::TrainerRef { job: job.into(), generation: generation.0, slot: slot.0 })
}

fn json<T: Serialize>(document: &T) -> String {
    serde_json::to_string(document).expect("documents of crate common have string keys, so they are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use to_worker::Message;

    fn reference() -> Option<v1::TrainerRef> {
        Some(v1::TrainerRef { job: "demo-1".into(), generation: 2, slot: 1 })
    }

    fn check(message: Option<Message>, expected: &str) {
        let found = match decode(v1::ToWorker { message, term: None }) {
            Ok(incoming) => format!("{incoming:?}"),
            Err(error) => error.to_string(),
        };
        assert!(found.contains(expected), "{found}");
    }

    #[test]
    fn what_cannot_be_read_is_told_to_whom_it_concerns() {
        let plan = "{}".to_owned();
        check(
            Some(Message::SendPlan(v1::SendPlan { trainer: reference(), plan })),
            "plan cannot be read: missing field",
        );
        check(Some(Message::StopTrainer(v1::StopTrainer { trainer: None })), "names no trainer");
        let trainer = Some(v1::TrainerRef { job: "../x".into(), generation: 1, slot: 0 });
        check(Some(Message::StopTrainer(v1::StopTrainer { trainer })), "`../x` is no job id");
        check(None, "update llm2clip-worker");
        check(
            Some(Message::EndTrainer(v1::EndTrainer { trainer: reference(), grace_ms: 1500, ..Default::default() })),
            "grace: 1.5s",
        );
    }
}
