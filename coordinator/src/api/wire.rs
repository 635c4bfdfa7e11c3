//! Messages of workers, to and from our own types.

use super::errors::invalid;
use crate::{
    job::{Command, Event, LivingTrainer, TrainerKey},
    rendezvous::Place,
    runtime::{Incarnation, Opening, Report},
};
use common::{
    ids::{Generation, JobId, Rank, Slot, Step, WorkerId},
    refusal::Refusal,
    status::FailureCause,
};
use proto::{
    v1::{
        CommitManifest, EndTrainer, FromWorker, Register, SendPlan, StartTrainer, StopTrainer, TrainerEnded,
        TrainerReady, TrainerRef, from_worker, to_worker::Message,
    },
    version,
};
use serde::{Serialize, de::DeserializeOwned};
use tonic::Status;

/// The first message.
pub(super) fn register(message: Option<FromWorker>) -> Result<Register, Status> {
    match message.and_then(|message| message.message) {
        Some(from_worker::Message::Register(register)) => Ok(register),
        _ => Err(Status::failed_precondition("the first message must be `register`")),
    }
}

/// The version of the protocol that both sides speak; or who is refused, on which machine, and why. Of another version's message
/// nothing is read that this does not need.
pub(super) fn protocol(register: &Register) -> Result<u32, (WorkerId, String, Refusal)> {
    let theirs = (register.protocol != 0).then_some((register.lowest_protocol, register.protocol));
    let spoken = theirs.and_then(|theirs| version::common(version::SPOKEN, theirs));
    // One without a name that can be one is told by `opening`, and kept nowhere.
    let Ok(worker) = register.worker.parse::<WorkerId>() else { return Ok(version::SPOKEN.1) };
    spoken.ok_or_else(|| {
        let inventory: serde_json::Value = serde_json::from_str(&register.inventory).unwrap_or_default();
        let host: String =
            inventory["host"].as_str().unwrap_or("a machine of unknown name").chars().take(255).collect();
        (worker, host, Refusal::Protocol { theirs, ours: version::SPOKEN })
    })
}

/// What it says; and the newest term of a leader that the worker has seen.
pub(super) fn opening(register: Register) -> Result<(Opening, Option<u64>), Status> {
    let living = register.trainers.into_iter().map(|ready| {
        let (job, generation, slot) = reference(ready.trainer)?;
        Ok((job, LivingTrainer { generation, slot, pid: ready.pid, peer: ready.peer }))
    });
    let opening = Opening {
        worker: register.worker.parse().map_err(|error| invalid("worker", error))?,
        incarnation: Incarnation { instance: register.instance, number: register.incarnation },
        inventory: parse("inventory", &register.inventory)?,
        living: living.collect::<Result<_, Status>>()?,
    };
    Ok((opening, register.term))
}

/// Every later message.
pub(super) fn report(worker: &WorkerId, message: FromWorker) -> Result<Report, Status> {
    use from_worker::Message as M;
    let place = |slot| Place { worker: worker.clone(), slot };
    let Some(message) = message.message else { return Err(Status::invalid_argument("an empty message")) };
    let (job, event) = match message {
        M::Register(_) => return Err(Status::failed_precondition("`register` can only be the first message")),
        M::Heartbeat(_) => return Ok(Report::Heartbeat),
        M::Leaving(_) => return Ok(Report::Leaving),
        M::TrainerReady(TrainerReady { trainer, pid, peer }) => {
            let (job, generation, slot) = reference(trainer)?;
            (job, Event::TrainerReady { generation, place: place(slot), pid, peer })
        }
        M::TrainerProgress(progress) => {
            let (job, _, slot) = reference(progress.trainer)?;
            (job, Event::Progress { place: place(slot), progress: parse("progress", &progress.progress)? })
        }
        M::TrainerPulse(pulse) => {
            let (job, _, slot) = reference(pulse.trainer)?;
            (job, Event::Pulse { place: place(slot), pulse: parse("pulse", &pulse.pulse)? })
        }
        M::CheckpointWritten(written) => {
            let (job, generation, _) = reference(written.trainer)?;
            let share = parse("share", &written.share)?;
            (job, Event::CheckpointWritten { generation, rank: Rank(written.rank), step: Step(written.step), share })
        }
        M::StorageTrouble(told) => {
            let (job, generation, _) = reference(told.trainer)?;
            (job, Event::StorageTrouble { generation, trouble: parse("trouble", &told.trouble)? })
        }
        M::CheckpointCommitted(committed) => {
            let (job, generation, _) = reference(committed.trainer)?;
            (job, Event::CheckpointCommitted { generation, step: Step(committed.step) })
        }
        M::StageFinished(finished) => {
            let (job, generation, _) = reference(finished.trainer)?;
            let summary = some(&finished.summary).map(|text| parse("summary", text)).transpose()?;
            let (rank, stopped) = (Rank(finished.rank), finished.stopped);
            (job, Event::StageFinished { generation, rank, summary, stopped })
        }
        M::PeersLost(lost) => {
            let (job, generation, _) = reference(lost.trainer)?;
            let (rank, step, message) = (Rank(lost.rank), lost.step.map(Step), lost.message);
            (job, Event::PeersLost { generation, rank, step, message })
        }
        M::TrainerEnded(ended) => self::ended(worker, ended)?,
    };
    Ok(Report::Job(job, Box::new(event)))
}

fn ended(worker: &WorkerId, ended: TrainerEnded) -> Result<(JobId, Event), Status> {
    let (job, generation, slot) = reference(ended.trainer)?;
    // An end must never be lost because its cause cannot be read.
    let cause = ended.cause.map(|text| {
        serde_json::from_str(&text)
            .unwrap_or(FailureCause::Error { message: format!("it ended for an unknown cause: {text}") })
    });
    let event = Event::TrainerEnded {
        generation,
        place: Place { worker: worker.clone(), slot },
        pid: (ended.pid != 0).then_some(ended.pid),
        cause,
        last_lines: ended.last_lines,
        log: some(&ended.log).map(Into::into),
    };
    Ok((job, event))
}

fn reference(trainer: Option<TrainerRef>) -> Result<(JobId, Generation, Slot), Status> {
    let trainer = trainer.ok_or_else(|| invalid("trainer", "it is missing"))?;
    let job = trainer.job.parse().map_err(|error| invalid("trainer.job", error))?;
    Ok((job, Generation(trainer.generation), Slot(trainer.slot)))
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn parse<T: DeserializeOwned>(field: &str, text: &str) -> Result<T, Status> {
    serde_json::from_str(text).map_err(|error| invalid(field, error))
}

/// An order as it is sent.
pub(super) fn message(command: Command) -> Result<Message, Status> {
    Ok(match command {
        Command::StartTrainer { trainer, output } => {
            let output = output.to_str().ok_or_else(|| invalid("output", "the folder's name is not UTF-8"))?.to_owned();
            Message::StartTrainer(StartTrainer { trainer: refer(trainer), output })
        }
        Command::SendPlan { trainer, plan } => {
            Message::SendPlan(SendPlan { trainer: refer(trainer), plan: json(&plan)? })
        }
        Command::StopTrainer { trainer } => Message::StopTrainer(StopTrainer { trainer: refer(trainer) }),
        Command::EndTrainer { trainer, grace } => {
            let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
            Message::EndTrainer(EndTrainer { trainer: refer(trainer), grace_ms, stuck: String::new() })
        }
        Command::EndStuck { trainer, stuck } => {
            Message::EndTrainer(EndTrainer { trainer: refer(trainer), grace_ms: 0, stuck: json(&stuck)? })
        }
        Command::CommitManifest { trainer, step, manifest } => Message::CommitManifest(CommitManifest {
            trainer: refer(trainer),
            step: step.0,
            manifest: json(&manifest)?,
        }),
    })
}

fn refer(trainer: TrainerKey) -> Option<TrainerRef> {
    let TrainerKey { job, generation, place } = trainer;
    Some(TrainerRef { job: job.into(), generation: generation.0, slot: place.slot.0 })
}

fn json<T: Serialize>(value: &T) -> Result<String, Status> {
    serde_json::to_string(value).map_err(|error| Status::internal(error.to_string()))
}
