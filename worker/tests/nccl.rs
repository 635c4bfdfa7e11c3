//! NCCL on GPUs: the contract that the ring keeps, and a peer that is killed. With `LLM2CLIP_TEST_GPU=1` on real ones; without
//! it on a stand-in. On one GPU its two ranks share it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use common::ids::{Generation, Rank};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tch::{Device, Kind};
use worker::{
    collective::{Collective, CollectiveError, Deadlines, Identity, join},
    torch::cuda::{Cuda, load_asked_for},
};

#[path = "../src/collective/contract.rs"]
mod contract;
#[path = "../stand_in/compile.rs"]
mod stand_in;

use contract::{Engine, LONG, cases, check_operations, contract, numbers};

/// What the second process is to do; absent in the first.
const PART: &str = "LLM2CLIP_TEST_PART";

/// How many GPUs the test may use; 0 when it is not to.
fn gpus() -> u32 {
    if std::env::var_os("LLM2CLIP_TEST_GPU").is_none_or(|value| value != "1") {
        println!("skipped: set LLM2CLIP_TEST_GPU=1 on a machine with a GPU and a CUDA libtorch");
        return 0;
    }
    match load_asked_for() {
        Cuda::Gpu { count } => count,
        Cuda::NoGpu { reason, .. } => panic!("LLM2CLIP_TEST_GPU=1, but {reason}"),
    }
}

/// The other tests of this file, in a process that takes the stand-ins for a GPU and its NCCL.
#[test]
fn all_of_this_holds_on_a_stand_in() {
    if std::env::var_os("LLM2CLIP_TEST_GPU").is_some() {
        println!("skipped: this is a GPU, or the stand-in already");
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--test-threads=1", "--nocapture"])
        .env("LLM2CLIP_TEST_GPU", "1")
        .envs(stand_in::compiled().environment());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("4 passed"), "{said}");
}

fn device(rank: Rank, gpus: u32) -> Device {
    Device::Cuda((rank.0 % gpus) as usize)
}

/// Starts this test again as rank 1, in a process of its own; it is told the peers on its stdin.
fn second(part: &str, gpus: u32) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", part, "--nocapture", "--test-threads=1"]).env(PART, part);
    if gpus == 1 {
        command.env("NCCL_HOSTID", "second");
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// Joins two processes, this one as rank 0 and, when `child` is absent, as rank 1.
fn pair(child: Option<&mut Child>, gpus: u32) -> Box<dyn Collective> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().to_string();
    let rank = Rank(u32::from(child.is_none()));
    let peers = match child {
        Some(child) => {
            // The test harness prints before the address.
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let other = lines.find_map(|line| Some(line.unwrap().split_once("address=")?.1.trim().to_owned())).unwrap();
            std::thread::spawn(move || lines.for_each(drop));
            writeln!(child.stdin.take().unwrap(), "{own},{other}").unwrap();
            vec![own, other]
        }
        None => {
            println!("address={own}");
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).unwrap();
            line.trim().split(',').map(str::to_owned).collect()
        }
    };
    let identity = Identity { generation: Generation(1), rank, peers };
    join(&listener, identity, Deadlines { join: LONG * 4, operation: LONG }, device(rank, gpus)).unwrap()
}

#[test]
fn two_processes_keep_the_contract() {
    let gpus = gpus();
    if gpus == 0 {
        return;
    }
    let mut child = std::env::var_os(PART).is_none().then(|| second("two_processes_keep_the_contract", gpus));
    let collective = pair(child.as_mut(), gpus);
    for case in cases(2) {
        check_operations(collective.as_ref(), &case, device(collective.rank(), gpus));
    }
    let lost = collective.lost().unwrap().expect("operations on a GPU return before they are done");
    assert_eq!(f64::try_from(lost).unwrap(), 0.0);
    // Who leaves while a peer is still at it counts as lost.
    collective.barrier().unwrap();
    drop(collective);
    if let Some(mut child) = child {
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn a_killed_peer_releases_what_waits_on_the_gpu() {
    let gpus = gpus();
    if gpus == 0 {
        return;
    }
    let mut child =
        std::env::var_os(PART).is_none().then(|| second("a_killed_peer_releases_what_waits_on_the_gpu", gpus));
    let collective = pair(child.as_mut(), gpus);
    let mut x = numbers(0, &[1 << 20], Kind::Float, device(collective.rank(), gpus));
    collective.all_reduce_sum(&mut x).unwrap();
    collective.barrier().unwrap();
    let Some(mut child) = child else {
        // Waits to be killed.
        std::thread::park_timeout(LONG);
        return;
    };
    collective.all_reduce_sum(&mut x).unwrap();
    child.kill().unwrap();
    let killed = Instant::now();
    let error = collective.finish().unwrap_err();
    assert!(killed.elapsed() < Duration::from_secs(2), "{error} after {:?}", killed.elapsed());
    assert!(matches!(error, CollectiveError::PeerLost { peer: Rank(1), .. } | CollectiveError::Nccl { .. }), "{error}");
    child.wait().unwrap();
    drop(collective);
    // The device is still good: what waited on the stream has gone on.
    assert_eq!(f64::try_from(x.ones_like().sum(Kind::Double)).unwrap(), f64::from(1 << 20));
}

#[test]
fn threads_on_their_own_gpus_keep_the_contract() {
    let gpus = gpus();
    if gpus < 2 {
        println!("skipped: two threads of one process need two GPUs");
        return;
    }
    let join = |listener: &TcpListener, identity: Identity, deadlines| {
        let device = Device::Cuda(identity.rank.0 as usize);
        join(listener, identity, deadlines, device)
    };
    let worlds: Vec<u32> = (2..=gpus.min(4)).collect();
    contract(Engine { join: &join, device: |rank| Device::Cuda(rank.0 as usize) }, &worlds);
}
