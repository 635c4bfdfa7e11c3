//! Builders for the tests of this folder.

use super::{Event, JobState, Submission, transition};
use crate::rendezvous::Place;
use common::{
    alarm::{StorageTrouble, Trouble},
    ids::{Generation, Rank, Slot, Step, WorldSize},
    manifest::{DataCursor, Part, Share, paths},
    recipe::{Detection, Elastic, EmbedStage, EvalStage, Faults, Models, Precision, Recipe, Stage},
    sampler::OrderSpec,
    status::{FailureCause, Progress},
    time::Timestamp,
};
use std::time::Duration;

/// When everything in these tests begins.
pub(super) const NOW: Timestamp = Timestamp(1_000_000);

/// A recipe of `embed`, `clip` and `eval`.
pub(super) fn recipe() -> Recipe {
    let data = vec!["d".to_owned()];
    let clip = serde_json::json!({
        "kind": "clip", "data": ["d"], "global_batch": 8, "chunk": 4, "length": {"steps": 10}, "precision": "fp32",
        "augment": {"scale": [0.9, 1.0], "ratio": [0.75, 1.33]},
        "optimizer": {"learning_rate": 1e-3, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.05,
                      "clip_norm": 1.0, "layer_decay": 1.0},
        "schedule": {"warmup_steps": 2}, "checkpoint": {"every_steps": 4, "keep": 2}, "logit_scale_init": 2.6592
    });
    Recipe {
        name: "demo".into(),
        seed: 7,
        output: "/shared/demo".into(),
        checkpoints: None,
        data: Default::default(),
        text: Default::default(),
        model: Models::default(),
        stages: vec![
            Stage::Embed(EmbedStage { data: data.clone(), batch_tokens: 64, precision: Precision::Fp32 }),
            serde_json::from_value(clip).unwrap(),
            Stage::Eval(EvalStage {
                data,
                chunk: 4,
                image_retrieval: true,
                caption_retrieval: Vec::new(),
                precision: None,
            }),
        ],
        faults: Faults {
            max_failures: 2,
            max_no_progress: 1,
            storage_wait: Duration::from_secs(300),
            detect: Detection::default(),
        },
        elastic: None,
    }
}

pub(super) fn place(slot: u32) -> Place {
    Place { worker: format!("w{slot}").parse().unwrap(), slot: Slot(0) }
}

/// One place on each of so many workers.
pub(super) fn places(count: u32) -> Vec<Place> {
    (0..count).map(place).collect()
}

pub(super) fn submitted(world: u32) -> JobState {
    let submission = Submission { job: "demo-1".parse().unwrap(), recipe: recipe(), world_size: WorldSize(world) };
    JobState::submitted(submission, NOW)
}

/// The job after these events; what they command is not looked at.
pub(super) fn after(state: JobState, events: impl IntoIterator<Item = Event>) -> JobState {
    events.into_iter().fold(state, |state, event| transition(&state, event, NOW).0)
}

pub(super) fn ready(generation: u64, slot: u32) -> Event {
    Event::TrainerReady { generation: Generation(generation), place: place(slot), pid: 100 + slot, peer: peer(slot) }
}

pub(super) fn peer(slot: u32) -> String {
    format!("10.0.0.{slot}:1")
}

pub(super) fn starting(world: u32) -> JobState {
    after(submitted(world), [Event::Capacity { free: places(world) }])
}

/// The same job, for a number of ranks that may change.
pub(super) fn elastic(mut state: JobState, min_ranks: u32, max_ranks: u32, grace_s: u64, spares: u32) -> JobState {
    let grace = Duration::from_secs(grace_s);
    state.recipe.elastic = Some(Elastic { min_ranks, max_ranks: Some(max_ranks), grace, spares });
    state
}

/// Generation 1 runs the stage `embed`.
pub(super) fn running(world: u32) -> JobState {
    after(starting(world), (0..world).map(|slot| ready(1, slot)))
}

/// Generation 2 runs the stage `clip`.
pub(super) fn training(world: u32) -> JobState {
    let state = after(running(world), (0..world).map(|rank| finished(1, rank, false)));
    after(state, (0..world).map(|slot| ready(2, slot)))
}

pub(super) fn finished(generation: u64, rank: u32, stopped: bool) -> Event {
    Event::StageFinished { generation: Generation(generation), rank: Rank(rank), summary: None, stopped }
}

pub(super) fn ended(generation: u64, slot: u32, cause: Option<FailureCause>) -> Event {
    Event::TrainerEnded {
        generation: Generation(generation),
        place: place(slot),
        pid: Some(100 + slot),
        cause,
        last_lines: vec!["bye".into()],
        log: Some("/shared/demo/logs/0.log".into()),
    }
}

pub(super) fn signal(signal: i32) -> Option<FailureCause> {
    Some(FailureCause::Signal { signal })
}

pub(super) fn said(message: &str) -> Option<FailureCause> {
    Some(FailureCause::Error { message: message.into() })
}

pub(super) fn share(rank: u32) -> Share {
    Share {
        part: Part {
            rank: Rank(rank),
            file: paths::part_file(Rank(rank), Generation(1)),
            bytes: 1,
            blake3: "00".repeat(32),
            tensors: Default::default(),
        },
        data: DataCursor::new(&OrderSpec::plain(7, &[], 8), 32, |_| String::new()),
    }
}

pub(super) fn written(generation: u64, rank: u32, step: u64) -> Event {
    let share = Box::new(share(rank));
    Event::CheckpointWritten { generation: Generation(generation), rank: Rank(rank), step: Step(step), share }
}

/// A share that could not be written, or one that is damaged.
pub(super) fn trouble(generation: u64, rank: u32, step: u64, damaged: bool) -> Event {
    let what = if damaged {
        Trouble::Damaged { message: "it is cut".into(), instead: Step(step / 2) }
    } else {
        Trouble::Failed { message: "no space".into() }
    };
    let trouble = StorageTrouble { rank: Rank(rank), step: Step(step), file: "/shared/demo/x".into(), what };
    Event::StorageTrouble { generation: Generation(generation), trouble: Box::new(trouble) }
}

pub(super) fn progress(generation: u64, slot: u32, stage: usize, step: u64) -> Event {
    let progress = Progress::at(Generation(generation), stage, Step(step), 10);
    Event::Progress { place: place(slot), progress: Box::new(progress) }
}
