//! The steps of `clip`, `contrast`, `distill` and `mntp` over several processes and chunks equal plain autograd on the full batch: loss,
//! every gradient, ten optimizer steps. A step in which one rank's embeddings are NaN updates nothing on any of them.
//!
//! Each rank is a process of its own: this program again, told by its environment to be one.

#![allow(clippy::unwrap_used, non_snake_case, reason = "a test; shapes in names")]

mod towers;

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
/// Set for a process that is to be a rank: what it is, as `RANK TASK KIND CHUNK OPTIMIZER FILE`.
const RANK_VARIABLE: &str = "LLM2CLIP_TEST_RANK";
/// Before the address that a rank says.
const ADDRESS: &str = "listens on ";

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
        Task::Taught => distill::accumulate(&one, cut, TAUGHT, collective, &mut parameters, loss, &mut timeline),
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
    // The others differ from these in what fp64 shows better.
    let tasks = [Task::Clip, Task::Sigmoid, Task::Contrast, Task::Taught, Task::Mntp];
    tasks.into_iter().for_each(|task| check(task, "fp32", 1e-5));
}

#[test]
fn any_world_and_any_chunks_equal_one_process_on_the_full_batch_in_fp64() {
    Task::ALL.into_iter().for_each(|task| check(task, "fp64", 1e-12));
}
