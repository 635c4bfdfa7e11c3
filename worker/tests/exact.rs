//! The steps of `clip`, `contrast` and `mntp` over several processes and chunks equal plain autograd on the full batch: loss,
//! every gradient, ten optimizer steps. A step in which one rank's embeddings are NaN updates nothing on any of them.
//!
//! Each rank is a process of its own: this program again, told by its environment to be one.

#![allow(clippy::unwrap_used, non_snake_case, reason = "a test; shapes in names")]

use common::{
    ids::{Generation, Rank},
    sampler,
};
use std::{
    collections::BTreeMap,
    env,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};
use tch::{Device, Kind, Tensor, nn};
use worker::{
    collective::{Collective, Deadlines, Identity, Solo, join},
    objective::Repeats,
    torch::shim::AdamW,
    trainer::{
        layout::clip_groups,
        parameters::FlatParameters,
        step::{
            Cut, LossSettings, PairLoss, Pairing, StepSettings,
            clip::{self, PairEncoder, clip_step},
            contrast::{self, Contrast, TextEncoder, contrast_step},
            mntp::{self, MaskedEncoder, mntp_step},
            normalise,
        },
        timeline::Timeline,
    },
};

const BATCH: u64 = 23;
const WIDTH: i64 = 12;
/// Places of the batch with the same sample: within a rank, across ranks, and one three times.
const REPEATS: [(i64, i64); 5] = [(0, 22), (3, 4), (7, 15), (15, 19), (7, 19)];
const LIMITS: Deadlines = Deadlines { join: Duration::from_secs(60), operation: Duration::from_secs(60) };
/// Set for a process that is to be a rank: what it is, as `RANK TASK KIND CHUNK OPTIMIZER FILE`.
const RANK_VARIABLE: &str = "LLM2CLIP_TEST_RANK";
/// Before the address that a rank says.
const ADDRESS: &str = "listens on ";

/// Inputs of the image tower. In fp64 so many that its first layer is a gradient bucket by itself; in fp32 AdamW would make
/// full steps of the rounding of so many gradients of nearly nothing.
fn pixels(kind: Kind) -> i64 {
    if kind == Kind::Double { 30_000 } else { 20 }
}

/// The step that `Task::Poisoned` poisons.
const POISONED: i64 = 3;

/// The label smoothing of `Task::Smoothed`.
const SMOOTHING: f64 = 0.15;

/// The factor on cosines of `contrast`.
const SCALE: f64 = 12.0;

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    Clip,
    Smoothed,
    Sigmoid,
    /// As `Clip`, and in one step what one rank makes of its images is NaN.
    Poisoned,
    Contrast,
    Mntp,
}

impl Task {
    const ALL: [Self; 6] = [Self::Clip, Self::Smoothed, Self::Sigmoid, Self::Poisoned, Self::Contrast, Self::Mntp];

    /// Whether it trains both towers.
    fn pairs(self) -> bool {
        matches!(self, Self::Clip | Self::Smoothed | Self::Sigmoid | Self::Poisoned)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Clip => "clip",
            Self::Smoothed => "smoothed",
            Self::Sigmoid => "sigmoid",
            Self::Poisoned => "poisoned",
            Self::Contrast => "contrast",
            Self::Mntp => "mntp",
        }
    }

    fn of(name: &str) -> Self {
        Self::ALL.into_iter().find(|task| task.name() == name).unwrap()
    }
}

/// Two small towers with dropout, of which `contrast` and `mntp` have the one of texts alone; whoever builds it gets the same
/// weights.
struct Towers {
    task: Task,
    store: nn::VarStore,
    w: Vec<Tensor>,
    log_scale: Tensor,
    /// Of the sigmoid loss.
    bias: Option<Tensor>,
}

impl Towers {
    fn new(task: Task, kind: Kind) -> Self {
        let mut store = nn::VarStore::new(Device::Cpu);
        let shapes = [
            ("image.a", [pixels(kind), WIDTH]),
            ("image.b", [WIDTH, WIDTH]),
            ("text.a", [9, WIDTH]),
            ("text.b", [WIDTH, WIDTH]),
        ];
        let mut w = Vec::new();
        let without = if task.pairs() { 0 } else { 2 };
        for (seed, (name, shape)) in (1..).zip(shapes).skip(without) {
            let mut variable = store.root().var(&name.replace('.', "_"), &shape, nn::Init::Const(0.0));
            let size = 1.8 / (shape[0] as f64).sqrt();
            tch::no_grad(|| variable.copy_(&(waves(seed, shape[0], shape[1]) * size)));
            w.push(variable);
        }
        let log_scale = match task.pairs() {
            true => store.root().var("logit_scale", &[], nn::Init::Const(2.659)),
            false => Tensor::from(0.0f32),
        };
        let bias = (task == Task::Sigmoid).then(|| store.root().var("logit_bias", &[], nn::Init::Const(-2.0)));
        // In place: the handles above stay those of the store.
        match kind {
            Kind::Double => store.double(),
            _ => store.float(),
        }
        Self { task, store, w, log_scale, bias }
    }

    fn pairing(&self) -> Pairing<'_> {
        let label_smoothing = if self.task == Task::Smoothed { SMOOTHING } else { 0.0 };
        let loss = match &self.bias {
            Some(bias) => PairLoss::Sigmoid { bias },
            None => PairLoss::Softmax { label_smoothing },
        };
        Pairing { log_scale: &self.log_scale, loss }
    }

    fn parameters(&self) -> FlatParameters {
        let variables = self.store.variables().into_iter().collect();
        let mut parameters = FlatParameters::new(variables, clip_groups(0.1, 1.0, 0, |_| 1), Device::Cpu).unwrap();
        parameters.average(0.8);
        parameters
    }

    /// Embeddings of the pairs of some slots at a step, with a dropout mask for each slot.
    fn encode(&self, step: i64, slots: std::ops::Range<u64>) -> (Tensor, Tensor) {
        let (first, count) = (slots.start as i64, (slots.end - slots.start) as i64);
        let tower = |kind: i64, w: &[Tensor]| tower(100 * step + kind, (first, count), &w[0], &w[1]);
        (tower(10, &self.w[..2]), tower(20, &self.w[2..]))
    }

    /// Vectors of the queries, positives and negatives of some slots at a step.
    fn texts(&self, step: i64, slots: std::ops::Range<u64>) -> Tensor {
        let place = (slots.start as i64, (slots.end - slots.start) as i64);
        Tensor::cat(&[20, 21, 22].map(|role| tower(100 * step + role, place, &self.w[0], &self.w[1])), 0)
    }

    /// The summed loss of some slots' masked tokens: slot i has i modulo 3 of them.
    fn masked(&self, step: i64, slots: std::ops::Range<u64>) -> Tensor {
        let (first, count) = (slots.start as i64, (slots.end - slots.start) as i64);
        let tokens: Vec<i64> = (0..count).flat_map(|row| vec![row; ((first + row) % 3) as usize]).collect();
        let targets: Vec<i64> = tokens.iter().map(|row| (first + row + step) % WIDTH).collect();
        let logits = tower(100 * step + 20, (first, count), &self.w[0], &self.w[1]);
        let logits = logits.index_select(0, &Tensor::from_slice(&tokens));
        worker::objective::masked::cross_entropy_sum(&logits, &Tensor::from_slice(&targets))
    }
}

fn masked_tokens(slots: std::ops::Range<u64>) -> i64 {
    slots.map(|slot| (slot % 3) as i64).sum()
}

/// [count, WIDTH]: two layers with a dropout mask for each row.
fn tower(seed: i64, (first, count): (i64, i64), a: &Tensor, b: &Tensor) -> Tensor {
    let x = waves(seed, BATCH as i64, a.size()[0]).narrow(0, first, count);
    let mask = waves(seed + 50, BATCH as i64, WIDTH).narrow(0, first, count).gt(-0.5).to_kind(a.kind());
    ((x.to_kind(a.kind()).matmul(a).tanh() * mask) * 1.25).matmul(b)
}

/// Pairs that have no negative, [count] bool.
fn lacking((first, count): (i64, i64)) -> Tensor {
    (Tensor::arange(count, (Kind::Int64, Device::Cpu)) + first).remainder(5).eq(2)
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
    poisoned: bool,
}

impl PairEncoder for Slice<'_> {
    fn encode(&self, chunk: usize) -> (Tensor, Tensor) {
        let (image, text) = self.towers.encode(self.step, self.chunks[chunk].clone());
        (if self.poisoned { image * f64::NAN } else { image }, text)
    }
}

impl TextEncoder for Slice<'_> {
    fn encode(&self, chunk: usize) -> Tensor {
        self.towers.texts(self.step, self.chunks[chunk].clone())
    }
}

impl MaskedEncoder for Slice<'_> {
    fn chunks(&self) -> usize {
        self.chunks.len()
    }

    fn masked(&self) -> i64 {
        self.chunks.iter().cloned().map(masked_tokens).sum()
    }

    fn loss_sum(&self, chunk: usize) -> Tensor {
        self.towers.masked(self.step, self.chunks[chunk].clone())
    }
}

/// What a run leaves: `losses` of each step, `gradient.X` of the first step, and at the end what a checkpoint holds.
type Trace = BTreeMap<String, Tensor>;

/// Small tiles; in chunks, as for a batch whose gathered rows of both towers do not fit into memory together.
fn loss_settings(chunk: u64) -> LossSettings {
    LossSettings { tile: 7, kept_bytes: if chunk < BATCH { 0 } else { i64::MAX } }
}

fn settings(step: u64, task: Task, loss: LossSettings) -> StepSettings {
    StepSettings {
        step,
        learning_rate: 1e-2,
        betas: (0.9, 0.98),
        eps: 1e-6,
        clip_norm: Some(0.5),
        skip_nonfinite: task == Task::Poisoned,
        loss,
    }
}

fn trace(losses: &[f64], gradients: Trace, state: Vec<(String, Tensor)>) -> Trace {
    let mut all = gradients;
    all.extend(state.into_iter().map(|(name, tensor)| (name, tensor.detach().copy())));
    // Those that are no number can be compared all the same.
    all.insert("losses".to_owned(), Tensor::from_slice(losses).nan_to_num(-1.0, None, None));
    all
}

fn gradients(towers: &Towers, parameters: &FlatParameters) -> Trace {
    let names = towers.store.variables().into_keys();
    names.map(|name| (format!("gradient.{name}"), parameters.gradient(&name).unwrap().copy())).collect()
}

/// Ten steps as one rank of several. With a sharded optimizer no rank has all gradients.
fn train(collective: &dyn Collective, task: Task, kind: Kind, chunk: u64, sharded: bool) -> Trace {
    let towers = Towers::new(task, kind);
    let mut parameters = towers.parameters();
    if sharded {
        parameters.shard(collective);
    }
    let slots = sampler::local_slots(collective.rank(), collective.world(), BATCH);
    let lacking_R = lacking((slots.start as i64, (slots.end - slots.start) as i64));
    let pairs = Contrast { scale: SCALE, lacking_R: Some(&lacking_R) };
    let chunks = sampler::chunks(slots, chunk);
    let sizes: Vec<i64> = chunks.iter().map(|chunk| (chunk.end - chunk.start) as i64).collect();
    let rows: Vec<i64> = sampler::rows(collective.world(), BATCH).into_iter().map(|n| n as i64).collect();
    let poisoned = |step| task == Task::Poisoned && step == POISONED && collective.rank() == Rank(0);
    let slice = |step| Slice { towers: &towers, step, chunks: chunks.clone(), poisoned: poisoned(step) };
    let repeats = Repeats::new(REPEATS);
    let (cut, pairing) = (Cut { sizes: &sizes, rows: &rows, repeats: &repeats }, towers.pairing());
    let loss = loss_settings(chunk);
    let mut timeline = Timeline::begin(Device::Cpu);
    let one = slice(1);
    let accumulated = match task {
        _ if task.pairs() => clip::accumulate(&one, cut, collective, &mut parameters, pairing, loss, &mut timeline),
        Task::Contrast => contrast::accumulate(&one, cut, pairs, collective, &mut parameters, loss, &mut timeline),
        _ => mntp::accumulate(&one, collective, &mut parameters, &mut timeline),
    };
    let _ = accumulated.unwrap();
    let first = if sharded { Trace::new() } else { gradients(&towers, &parameters) };
    let step = |step: u64| {
        let (slice, timeline) = (slice(step as i64), Timeline::begin(Device::Cpu));
        let settings = settings(step, task, loss);
        let begun = match task {
            _ if task.pairs() => clip_step(&slice, cut, collective, &mut parameters, pairing, &settings, timeline),
            Task::Contrast => contrast_step(&slice, cut, pairs, collective, &mut parameters, &settings, timeline),
            _ => mntp_step(&slice, collective, &mut parameters, &settings, timeline),
        };
        let output = begun.unwrap().wait().unwrap();
        assert!(output.updated);
        output.loss
    };
    let losses: Vec<f64> = (1..=10).map(step).collect();
    trace(&losses, first, parameters.named(collective).unwrap())
}

/// The loss of the whole batch.
fn whole(towers: &Towers, step: i64, kind: Kind) -> Tensor {
    let batch = BATCH as i64;
    let targets = Tensor::arange(batch, (Kind::Int64, Device::Cpu));
    // `cross_entropy_for_logits` of tch computes in fp32.
    let one_way = |logits: &Tensor| logits.log_softmax(-1, kind).nll_loss(&targets);
    let hidden_BB = Tensor::zeros([batch; 2], (Kind::Bool, Device::Cpu));
    for (a, b) in REPEATS.into_iter().flat_map(|(a, b)| [(a, b), (b, a)]) {
        let _ = hidden_BB.get(a).get(b).fill_(1);
    }
    let cosines_BB = || {
        let (image, text) = towers.encode(step, 0..BATCH);
        normalise(&image).matmul(&normalise(&text).tr())
    };
    match towers.task {
        Task::Clip | Task::Poisoned | Task::Smoothed => {
            let logits_BB = (cosines_BB() * towers.log_scale.exp()).masked_fill(&hidden_BB, f64::NEG_INFINITY);
            let plain = (one_way(&logits_BB) + one_way(&logits_BB.tr())) * 0.5;
            if towers.task != Task::Smoothed {
                return plain;
            }
            let even = |logits_BB: &Tensor| {
                let log_p_BB = logits_BB.log_softmax(-1, kind).masked_fill(&hidden_BB, 0.0);
                let seen_B = hidden_BB.logical_not().sum_dim_intlist(&[1i64][..], false, kind);
                -(log_p_BB.sum_dim_intlist(&[1i64][..], false, kind) / seen_B).mean(kind)
            };
            plain * (1.0 - SMOOTHING) + (even(&logits_BB) + even(&logits_BB.tr())) * (0.5 * SMOOTHING)
        }
        Task::Sigmoid => {
            let logits_BB = cosines_BB() * towers.log_scale.exp() + towers.bias.as_ref().unwrap();
            let z_BB = Tensor::eye(batch, (kind, Device::Cpu)) * 2.0 - 1.0;
            -(logits_BB * z_BB).log_sigmoid().masked_fill(&hidden_BB, 0.0).sum(kind) / batch as f64
        }
        Task::Contrast => {
            let rows = normalise(&towers.texts(step, 0..BATCH)).chunk(3, 0);
            let scores = |documents: &Tensor| rows[0].matmul(&documents.tr()) * SCALE;
            let positives_BB = scores(&rows[1]).masked_fill(&hidden_BB, f64::NEG_INFINITY);
            let none_1B = lacking((0, batch)).unsqueeze(0);
            let negatives_BB = scores(&rows[2]).masked_fill(&none_1B, f64::NEG_INFINITY);
            one_way(&Tensor::cat(&[positives_BB, negatives_BB], 1))
        }
        Task::Mntp => towers.masked(step, 0..BATCH) / masked_tokens(0..BATCH) as f64,
    }
}

/// Ten steps of plain autograd on the full matrix, with the same optimizer.
fn reference(task: Task, kind: Kind) -> Trace {
    let towers = Towers::new(task, kind);
    let mut parameters = towers.parameters();
    let mut first = None;
    let mut losses = Vec::new();
    for step in 1..=10 {
        parameters.zero_grad();
        let loss = whole(&towers, step, kind);
        loss.backward();
        first.get_or_insert_with(|| gradients(&towers, &parameters));
        if task == Task::Poisoned && step == POISONED {
            losses.push(f64::NAN);
            continue;
        }
        losses.push(loss.double_value(&[]));
        let _ = parameters.clip(&Solo, Some(0.5)).unwrap();
        let constants =
            AdamW { step: step as u64, learning_rate: 1e-2, betas: (0.9, 0.98), weight_decay: 0.0, eps: 1e-6 };
        parameters.update(&Solo, None, &constants).unwrap();
        parameters.update_average(None);
    }
    trace(&losses, first.unwrap(), parameters.named(&Solo).unwrap())
}

/// Not a test: a rank. It says its address, is told those of all, trains, and leaves its trace in a file.
#[test]
fn rank() {
    let Ok(told) = env::var(RANK_VARIABLE) else { return };
    let words: Vec<&str> = told.splitn(6, ' ').collect();
    let [rank, task, kind, chunk, optimizer, file] = words[..] else { panic!("what rank is `{told}`?") };
    tch::set_num_threads(1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{ADDRESS}{}", listener.local_addr().unwrap());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let peers = line.split_whitespace().map(str::to_owned).collect();
    let identity = Identity { generation: Generation(1), rank: Rank(rank.parse().unwrap()), peers };
    let collective = join(&listener, identity, LIMITS, Device::Cpu).unwrap();
    let kind = if kind == "fp64" { Kind::Double } else { Kind::Float };
    let trace = train(collective.as_ref(), Task::of(task), kind, chunk.parse().unwrap(), optimizer == "sharded");
    Tensor::write_safetensors(&trace.into_iter().collect::<Vec<_>>(), file).unwrap();
    collective.barrier().unwrap();
}

/// A rank's process. It is killed if the test gives up.
struct Process {
    child: Child,
    /// Kept open: the test runner's last words go there.
    _stdout: BufReader<ChildStdout>,
}

impl Process {
    /// Starts a rank, and waits for its address.
    fn start(told: &str) -> (Self, String) {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "rank", "--nocapture"]).env(RANK_VARIABLE, told);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        // The test runner's own words may stand before it, on the same line.
        let said = |line: String| line.split_once(ADDRESS).map(|(_, address)| address.to_owned());
        let address = stdout.by_ref().lines().find_map(|line| said(line.unwrap())).unwrap();
        (Self { child, _stdout: stdout }, address)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended already unless the test gave up.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ring(world: u32, task: Task, kind: &str, chunk: u64, optimizer: &str) -> Vec<Trace> {
    let folder = tempfile::tempdir().unwrap();
    let file = |rank: u32| folder.path().join(format!("{rank}.safetensors"));
    let task = task.name();
    let start =
        |rank: u32| Process::start(&format!("{rank} {task} {kind} {chunk} {optimizer} {}", file(rank).display()));
    let (mut ranks, addresses): (Vec<_>, Vec<_>) = (0..world).map(start).unzip();
    for rank in &mut ranks {
        writeln!(rank.child.stdin.take().unwrap(), "{}", addresses.join(" ")).unwrap();
    }
    for rank in &mut ranks {
        assert!(rank.child.wait().unwrap().success());
    }
    let read = |file: &Path| Tensor::read_safetensors(file).unwrap().into_iter().collect();
    (0..world).map(|rank| read(&file(rank))).collect()
}

fn check(task: Task, kind: &str, relative: f64) {
    let expected = reference(task, if kind == "fp64" { Kind::Double } else { Kind::Float });
    let mut worst = 0f64;
    for (world, chunk, optimizer) in [
        (1, 23, "whole"),
        (1, 4, "whole"),
        (2, 23, "whole"),
        (2, 5, "sharded"),
        (3, 23, "sharded"),
        (3, 2, "whole"),
        (4, 6, "whole"),
        (4, 1, "sharded"),
    ] {
        for found in ring(world, task, kind, chunk, optimizer) {
            for (name, expected) in &expected {
                let what =
                    || format!("{task:?}, {world} ranks, chunks of {chunk}, {optimizer} optimizer, {kind}, {name}");
                let Some(found) = found.get(name) else {
                    assert!(optimizer == "sharded" && name.starts_with("gradient."), "{} is missing", what());
                    continue;
                };
                let difference = (found - expected).norm().double_value(&[]);
                let size = expected.norm().double_value(&[]);
                worst = worst.max(difference / size);
                assert!(difference <= relative * size, "{}: differs by {difference} of {size}", what());
            }
        }
    }
    println!("{task:?}, {kind}: the largest relative difference is {worst:.1e}");
}

#[test]
fn any_world_and_any_chunks_equal_one_process_on_the_full_batch_in_fp32() {
    Task::ALL.into_iter().for_each(|task| check(task, "fp32", 1e-5));
}

#[test]
fn any_world_and_any_chunks_equal_one_process_on_the_full_batch_in_fp64() {
    Task::ALL.into_iter().for_each(|task| check(task, "fp64", 1e-12));
}
