//! The contrastive step over several ranks and chunks equals plain autograd on the full batch: loss, every gradient, ten
//! optimizer steps.

#![allow(clippy::unwrap_used, non_snake_case, reason = "a test; shapes in names")]

use common::{
    ids::{Generation, Rank},
    sampler,
};
use std::{net::TcpListener, time::Duration};
use tch::{Device, Kind, Tensor, nn};
use worker::{
    collective::{Collective, Deadlines, Identity, Solo, join},
    torch::shim::AdamW,
    trainer::{
        parameters::{FlatParameters, clip_groups},
        step::{PairEncoder, StepSettings, StepTimes, accumulate, contrastive_step, normalise},
    },
};

const BATCH: u64 = 23;
const WIDTH: i64 = 12;
const LIMITS: Deadlines = Deadlines { join: Duration::from_secs(60), operation: Duration::from_secs(60) };

/// Two small towers with dropout; whoever builds it gets the same weights.
struct Towers {
    store: nn::VarStore,
    w: Vec<Tensor>,
    log_scale: Tensor,
}

impl Towers {
    fn new() -> Self {
        let store = nn::VarStore::new(Device::Cpu);
        let shapes =
            [("image.a", [20, WIDTH]), ("image.b", [WIDTH, WIDTH]), ("text.a", [9, WIDTH]), ("text.b", [WIDTH, WIDTH])];
        let mut w = Vec::new();
        for (seed, (name, shape)) in (1..).zip(shapes) {
            let mut variable = store.root().var(&name.replace('.', "_"), &shape, nn::Init::Const(0.0));
            tch::no_grad(|| variable.copy_(&(waves(seed, shape[0], shape[1]) * 0.4)));
            w.push(variable);
        }
        let log_scale = store.root().var("logit_scale", &[], nn::Init::Const(2.659));
        Self { store, w, log_scale }
    }

    fn parameters(&self) -> FlatParameters {
        let variables = self.store.variables().into_iter().collect();
        FlatParameters::new(variables, clip_groups(0.1, 1.0, 0, |_| 1), Device::Cpu).unwrap()
    }

    /// Embeddings of the pairs of some slots at a step, with a dropout mask for each slot.
    fn encode(&self, step: i64, slots: std::ops::Range<u64>) -> (Tensor, Tensor) {
        let (first, count) = (slots.start as i64, (slots.end - slots.start) as i64);
        let tower = |kind: i64, inputs: i64, a: &Tensor, b: &Tensor| {
            let x = waves(100 * step + kind, BATCH as i64, inputs).narrow(0, first, count);
            let mask = waves(100 * step + kind + 50, BATCH as i64, WIDTH)
                .narrow(0, first, count)
                .gt(-0.5)
                .to_kind(Kind::Float);
            ((x.matmul(a).tanh() * mask) * 1.25).matmul(b)
        };
        (tower(10, 20, &self.w[0], &self.w[1]), tower(20, 9, &self.w[2], &self.w[3]))
    }
}

/// Numbers on [-1, 1] that depend on the seed and the place alone.
fn waves(seed: i64, rows: i64, columns: i64) -> Tensor {
    let place = Tensor::arange(rows * columns, (Kind::Double, Device::Cpu)) + (seed * 7919) as f64;
    (place * 12.9898).sin().multiply_scalar(43758.5453).sin().to_kind(Kind::Float).view([rows, columns])
}

struct Slice<'a> {
    towers: &'a Towers,
    step: i64,
    chunks: Vec<std::ops::Range<u64>>,
}

impl PairEncoder for Slice<'_> {
    fn encode(&self, chunk: usize) -> (Tensor, Tensor) {
        self.towers.encode(self.step, self.chunks[chunk].clone())
    }
}

/// What a run leaves: the loss of each step, the first step's gradients, the weights at the end.
struct Trace {
    losses: Vec<f64>,
    gradients: Vec<(String, Tensor)>,
    weights: Vec<(String, Tensor)>,
}

fn settings(step: u64) -> StepSettings {
    StepSettings { step, learning_rate: 1e-2, betas: (0.9, 0.98), eps: 1e-6, clip_norm: Some(0.5), tile: 7 }
}

fn sorted(towers: &Towers, of: impl Fn(&str, &Tensor) -> Tensor) -> Vec<(String, Tensor)> {
    let mut all: Vec<(String, Tensor)> =
        towers.store.variables().into_iter().map(|(name, variable)| (name.clone(), of(&name, &variable))).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// Ten steps as one rank of several.
fn train(collective: &dyn Collective, chunk: u64) -> Trace {
    let towers = Towers::new();
    let mut parameters = towers.parameters();
    let slots = sampler::local_slots(collective.rank(), collective.world(), BATCH);
    let chunks = sampler::chunks(slots, chunk);
    let sizes: Vec<i64> = chunks.iter().map(|chunk| (chunk.end - chunk.start) as i64).collect();
    let rows: Vec<i64> = sampler::rows(collective.world(), BATCH).into_iter().map(|n| n as i64).collect();
    let slice = |step| Slice { towers: &towers, step, chunks: chunks.clone() };
    let mut times = StepTimes::default();
    let _ =
        accumulate(&slice(1), (&sizes, &rows), collective, &mut parameters, &towers.log_scale, 7, &mut times).unwrap();
    let gradients = sorted(&towers, |name, _| parameters.gradient(name).unwrap().copy());
    let step = |step: u64| {
        let slice = slice(step as i64);
        contrastive_step(&slice, (&sizes, &rows), collective, &mut parameters, &towers.log_scale, &settings(step))
            .unwrap()
            .loss
    };
    let losses = (1..=10).map(step).collect();
    Trace { losses, gradients, weights: sorted(&towers, |_, variable| variable.detach().copy()) }
}

/// Ten steps of plain autograd on the full matrix, with the same optimizer.
fn reference() -> Trace {
    let towers = Towers::new();
    let mut parameters = towers.parameters();
    let mut first = None;
    let mut losses = Vec::new();
    for step in 1..=10 {
        parameters.zero_grad();
        let (image, text) = towers.encode(step, 0..BATCH);
        let logits_BB = normalise(&image).matmul(&normalise(&text).tr()) * towers.log_scale.exp();
        let targets = Tensor::arange(BATCH as i64, (Kind::Int64, Device::Cpu));
        let loss =
            (logits_BB.cross_entropy_for_logits(&targets) + logits_BB.tr().cross_entropy_for_logits(&targets)) * 0.5;
        loss.backward();
        first.get_or_insert_with(|| sorted(&towers, |name, _| parameters.gradient(name).unwrap().copy()));
        losses.push(loss.double_value(&[]));
        let _ = parameters.clip(Some(0.5));
        let constants =
            AdamW { step: step as u64, learning_rate: 1e-2, betas: (0.9, 0.98), weight_decay: 0.0, eps: 1e-6 };
        parameters.update(&constants).unwrap();
    }
    Trace { losses, gradients: first.unwrap(), weights: sorted(&towers, |_, variable| variable.detach().copy()) }
}

fn ring(world: u32, chunk: u64) -> Vec<Trace> {
    if world == 1 {
        return vec![train(&Solo, chunk)];
    }
    let listeners: Vec<TcpListener> = (0..world).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let peers: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    std::thread::scope(|scope| {
        let rank = |(listener, rank)| {
            let identity = Identity { generation: Generation(1), rank: Rank(rank), peers: peers.clone() };
            scope.spawn(move || train(join(listener, identity, LIMITS, Device::Cpu).unwrap().as_ref(), chunk))
        };
        let ranks: Vec<_> = listeners.iter().zip(0..).map(rank).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn close(what: &str, found: &[(String, Tensor)], expected: &[(String, Tensor)], relative: f64) {
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        let difference = (found - expected).norm().double_value(&[]);
        let size = expected.norm().double_value(&[]);
        assert!(difference <= relative * size, "{what}, {name}: differs by {difference} of {size}");
    }
}

#[test]
fn any_world_and_any_chunks_equal_one_process_on_the_full_batch() {
    let expected = reference();
    for (world, chunk) in [(1, 23), (1, 4), (2, 23), (2, 5), (3, 23), (3, 2), (4, 6), (4, 1)] {
        for trace in ring(world, chunk) {
            let what = format!("{world} ranks, chunks of {chunk}");
            close(&what, &trace.gradients, &expected.gradients, 1e-5);
            for (found, expected) in trace.losses.iter().zip(&expected.losses) {
                assert!((found - expected).abs() <= 1e-5 * expected.abs(), "{what}: loss {found}, expected {expected}");
            }
            close(&what, &trace.weights, &expected.weights, 1e-4);
        }
    }
}
