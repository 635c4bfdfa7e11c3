//! Orders and reports for tests.

use crate::supervisor::ipc::{Order, Report};
use common::{
    ids::{Generation, Rank, Step, WorldSize},
    manifest::{DataCursor, FORMAT, Manifest},
    plan::TrainPlan,
    recipe::{Faults, Models, Recipe},
    sampler::OrderSpec,
    status::Progress,
};
use std::time::Duration;

pub fn progress(generation: u64, step: u64) -> Report {
    Report::Progress(Box::new(Progress { loss: Some(1.5), ..Progress::at(Generation(generation), 0, Step(step), 100) }))
}

pub fn committed(generation: u64, step: u64) -> Report {
    Report::CheckpointCommitted { generation: Generation(generation), step: Step(step) }
}

pub fn finished(generation: u64) -> Report {
    Report::StageFinished { generation: Generation(generation), rank: Rank(0), summary: None, stopped: false }
}

pub fn plan(generation: u64) -> Order {
    let faults = Faults {
        max_failures: 0,
        max_no_progress: 3,
        storage_wait: Duration::from_secs(300),
        detect: Default::default(),
    };
    let model = Models::default();
    let (name, output) = ("demo".to_owned(), "/nowhere".into());
    let recipe = Recipe {
        name,
        seed: 0,
        output,
        checkpoints: None,
        data: [].into(),
        text: [].into(),
        model,
        stages: vec![],
        faults,
        elastic: None,
    };
    Order::Plan(Box::new(TrainPlan {
        schema: 1,
        job: "demo-1".parse().unwrap(),
        generation: Generation(generation),
        rank: Rank(0),
        peers: vec!["127.0.0.1:1".into()],
        stage: 0,
        resume: None,
        from_memory: false,
        at_once: false,
        recipe,
        output: "/nowhere".into(),
    }))
}

pub fn commit(step: u64) -> Order {
    let manifest = Box::new(Manifest {
        format: FORMAT,
        job: "demo-1".parse().unwrap(),
        generation: Generation(1),
        step: Step(step),
        world: WorldSize(0),
        stage: "clip".into(),
        recipe_fingerprint: "ab".into(),
        data: DataCursor::new(&OrderSpec::plain(0, &[], 1), 0, |_| String::new()),
        parts: vec![],
    });
    Order::CommitManifest { step: Step(step), manifest }
}
