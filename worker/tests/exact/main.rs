//! The steps of `clip`, `contrast`, `distill` and `mntp` over several processes and chunks equal plain autograd on the full batch: loss,
//! every gradient, ten optimizer steps. A step in which one rank's embeddings are NaN updates nothing on any of them.
//!
//! Each rank is a process of its own: this program again, told by its environment to be one, and by its input what to train.

#![allow(clippy::unwrap_used, non_snake_case, reason = "a test; shapes in names")]

mod towers;

use common::{
    ids::{Generation, Rank},
    sampler,
};
use std::{
    collections::BTreeMap,
    env,
    io::{BufRead as _, BufReader, Lines, Write as _},
    net::TcpListener,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};
use tch::{Device, Kind, Tensor};
use towers::{BATCH, POISONED, REPEATS, SCALE, Slice, TAUGHT, Task, Towers, lacking, whole};
use worker::{
    collective::{Collective, Deadlines, Identity, Solo, join},
    objective::Repeats,
    torch::shim::AdamW,
    trainer::{
        parameters::FlatParameters,
        step::{
            Cut, LossSettings, StepSettings,
            clip::{self, clip_step},
            contrast::{self, Contrast, contrast_step},
            distill::{self, distill_step},
            mntp::{self, mntp_step},
        },
        timeline::Timeline,
    },
};

const LIMITS: Deadlines = Deadlines { join: Duration::from_secs(60), operation: Duration::from_secs(60) };
/// Set for a process that is to be a rank. It is told what to train by lines `GENERATION RANK TASK KIND CHUNK OPTIMIZER FILE PEER...`.
const RANK_VARIABLE: &str = "LLM2CLIP_TEST_RANK";
/// What a rank says when it has trained.
const DONE: &str = "has trained";
/// Before the address that a rank says.
const ADDRESS: &str = "listens on ";

/// AdamW's ε. In fp64 one of 1e-6 makes steps of the rounding of gradients that are nearly nothing: after ten, two right programs
/// differ by up to 4e-12, more or less by the processor.
fn eps(kind: Kind) -> f64 {
    if kind == Kind::Double { 1e-3 } else { 1e-6 }
}

/// What a run leaves: `losses` of each step, `gradient.X` of the first step, and at the end what a checkpoint holds.
type Trace = BTreeMap<String, Tensor>;

/// Small tiles; in chunks, as for a batch whose gathered rows of both towers do not fit into memory together.
fn loss_settings(chunk: u64) -> LossSettings {
    LossSettings { tile: 7, kept_bytes: if chunk < BATCH { 0 } else { i64::MAX } }
}

fn settings(step: u64, task: Task, kind: Kind, loss: LossSettings) -> StepSettings {
    StepSettings {
        step,
        learning_rate: 1e-2,
        betas: (0.9, 0.98),
        eps: eps(kind),
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
        Task::Taught => distill::accumulate(&one, cut, TAUGHT, collective, &mut parameters, loss, &mut timeline),
        _ => mntp::accumulate(&one, collective, &mut parameters, &mut timeline),
    };
    let _ = accumulated.unwrap();
    let first = if sharded { Trace::new() } else { gradients(&towers, &parameters) };
    let step = |step: u64| {
        let (slice, timeline) = (slice(step as i64), Timeline::begin(Device::Cpu));
        let settings = settings(step, task, kind, loss);
        let begun = match task {
            _ if task.pairs() => clip_step(&slice, cut, collective, &mut parameters, pairing, &settings, timeline),
            Task::Contrast => contrast_step(&slice, cut, pairs, collective, &mut parameters, &settings, timeline),
            Task::Taught => distill_step(&slice, cut, TAUGHT, collective, &mut parameters, &settings, timeline),
            _ => mntp_step(&slice, collective, &mut parameters, &settings, timeline),
        };
        let output = begun.unwrap().wait().unwrap();
        assert!(output.updated);
        output.loss
    };
    let losses: Vec<f64> = (1..=10).map(step).collect();
    trace(&losses, first, parameters.named(collective).unwrap())
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
            AdamW { step: step as u64, learning_rate: 1e-2, betas: (0.9, 0.98), weight_decay: 0.0, eps: eps(kind) };
        parameters.update(&Solo, None, &constants).unwrap();
        parameters.update_average(None);
    }
    trace(&losses, first.unwrap(), parameters.named(&Solo).unwrap())
}

/// Not a test: a rank. It says its address; then for each line that it is told it trains in a ring, and leaves its trace in a file.
#[test]
fn rank() {
    if env::var_os(RANK_VARIABLE).is_none() {
        return;
    }
    tch::set_num_threads(1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{ADDRESS}{}", listener.local_addr().unwrap());
    for told in std::io::stdin().lines() {
        let told = told.unwrap();
        let words: Vec<&str> = told.split(' ').collect();
        let [generation, rank, task, kind, chunk, optimizer, file, ref peers @ ..] = words[..] else {
            panic!("what is `{told}`?")
        };
        let peers = peers.iter().map(|peer| (*peer).to_owned()).collect();
        let identity =
            Identity { generation: Generation(generation.parse().unwrap()), rank: Rank(rank.parse().unwrap()), peers };
        let collective = join(&listener, identity, LIMITS, Device::Cpu).unwrap();
        let kind = if kind == "fp64" { Kind::Double } else { Kind::Float };
        let trace = train(collective.as_ref(), Task::of(task), kind, chunk.parse().unwrap(), optimizer == "sharded");
        Tensor::write_safetensors(&trace.into_iter().collect::<Vec<_>>(), file).unwrap();
        collective.barrier().unwrap();
        println!("{DONE}");
    }
}

/// A rank's process. It is killed if the test gives up.
struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    address: String,
}

impl Process {
    /// Starts a rank, and waits for its address.
    fn start() -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "rank", "--nocapture"]).env(RANK_VARIABLE, "");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        // The test runner's own words may stand before it, on the same line.
        let said = |line: String| line.split_once(ADDRESS).map(|(_, address)| address.to_owned());
        let address = stdout.find_map(|line| said(line.unwrap())).unwrap();
        Self { child, stdin, stdout, address }
    }

    /// Waits until it has done what it was told.
    fn done(&mut self) {
        assert!(self.stdout.any(|line| line.unwrap() == DONE), "a rank has ended early");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processes that rings are made of: the first so many, in a new generation for every training.
struct Ring {
    processes: Vec<Process>,
    generation: u64,
}

impl Ring {
    fn start() -> Self {
        Self { processes: (0..4).map(|_| Process::start()).collect(), generation: 0 }
    }

    fn train(&mut self, world: usize, training: &str) -> Vec<Trace> {
        let folder = tempfile::tempdir().unwrap();
        let file = |rank: usize| folder.path().join(format!("{rank}.safetensors"));
        let ring = &mut self.processes[..world];
        let peers: Vec<String> = ring.iter().map(|process| process.address.clone()).collect();
        self.generation += 1;
        for (rank, process) in ring.iter_mut().enumerate() {
            let file = file(rank).display().to_string();
            writeln!(process.stdin, "{} {rank} {training} {file} {}", self.generation, peers.join(" ")).unwrap();
        }
        ring.iter_mut().for_each(Process::done);
        let read = |file: &Path| Tensor::read_safetensors(file).unwrap().into_iter().collect();
        (0..world).map(|rank| read(&file(rank))).collect()
    }
}

fn check(ring: &mut Ring, task: Task, kind: &str, relative: f64) {
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
        for found in ring.train(world, &format!("{} {kind} {chunk} {optimizer}", task.name())) {
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
    // The others differ from these in what fp64 shows better.
    let tasks = [Task::Clip, Task::Sigmoid, Task::Contrast, Task::Taught, Task::Mntp];
    let mut ring = Ring::start();
    tasks.into_iter().for_each(|task| check(&mut ring, task, "fp32", 1e-5));
}

#[test]
fn any_world_and_any_chunks_equal_one_process_on_the_full_batch_in_fp64() {
    let mut ring = Ring::start();
    Task::ALL.into_iter().for_each(|task| check(&mut ring, task, "fp64", 1e-12));
}
