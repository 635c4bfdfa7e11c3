//! Bandwidth of all-reduce and all-gather between processes on this machine, over the TCP ring or NCCL.

use super::median;
use crate::{
    collective::{Collective, Deadlines, Identity, join},
    supervisor::sharing,
    torch::cuda::DeviceChoice,
};
use anyhow::Context as _;
use common::ids::{Generation, Rank};
use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tch::{Device, Kind, Tensor};

const DEADLINE: Duration = Duration::from_secs(60);

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct CollectiveArgs {
    /// Processes
    #[arg(long, default_value_t = 2)]
    pub ranks: u32,
    /// Sizes of a rank's tensor in MiB
    #[arg(long, value_delimiter = ',', default_value = "1,16,64")]
    pub mib: Vec<i64>,
    /// Runs before the measured ones
    #[arg(long, default_value_t = 2)]
    pub warmup: usize,
    /// Measured runs
    #[arg(long, default_value_t = 9)]
    pub repeats: usize,
    /// Where the tensors are: cpu, cuda, cuda:N, auto; a rank is on GPU `rank` modulo their number
    #[arg(long, default_value = "cpu")]
    pub device: DeviceChoice,
    /// One JSON document on stdout (always so)
    #[arg(short, long, default_value = "json", value_parser = ["json"])]
    pub output: String,
    /// Be this rank of those that the first process starts
    #[arg(long, hide = true)]
    pub rank: Option<u32>,
}

/// Measures, and returns the figures.
pub fn run(args: &CollectiveArgs) -> anyhow::Result<Value> {
    anyhow::ensure!(args.ranks > 0 && args.repeats > 0, "--ranks and --repeats must be 1 or more");
    let device = args.device.choose(args.rank.unwrap_or(0)).map_err(anyhow::Error::msg)?;
    tch::set_num_threads(1);
    let listener = TcpListener::bind("127.0.0.1:0").context("listening on loopback")?;
    let own = listener.local_addr()?.to_string();
    if let Some(rank) = args.rank {
        println!("{own}");
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)?;
        measure(args, (rank, device), &listener, line.trim().split(',').map(str::to_owned).collect())?;
        std::process::exit(0);
    }
    let gpus = if device == Device::Cpu { 0 } else { usize::try_from(tch::Cuda::device_count()).unwrap_or(0) };
    let mut children = (1..args.ranks).map(|rank| child(args, rank, gpus)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut peers = vec![own];
    for child in &mut children {
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its stdout")?).read_line(&mut line)?;
        peers.push(line.trim().to_owned());
    }
    for child in &mut children {
        writeln!(child.stdin.take().context("its stdin")?, "{}", peers.join(","))?;
    }
    let sizes = measure(args, (0, device), &listener, peers)?;
    for mut child in children {
        anyhow::ensure!(child.wait()?.success(), "a rank failed");
    }
    Ok(json!({
        "schema": 1, "bench": "collective", "ranks": args.ranks, "device": args.device.to_string(),
        "repeats": args.repeats, "sizes": sizes,
    }))
}

fn child(args: &CollectiveArgs, rank: u32, gpus: usize) -> anyhow::Result<Child> {
    let ranks_per_gpu = sharing::ranks_per_gpu(args.ranks, gpus);
    let place = sharing::Place { worker: "bench", slot: rank, ranks_per_gpu };
    let list = |values: &[i64]| values.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
    Command::new(std::env::current_exe()?)
        .args(["bench", "collective", "--rank", &rank.to_string(), "--ranks", &args.ranks.to_string()])
        .envs(sharing::environment(place, None))
        .args(["--device", &args.device.to_string()])
        .args(["--mib", &list(&args.mib), "--warmup", &args.warmup.to_string(), "--repeats", &args.repeats.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting a rank")
}

fn measure(
    args: &CollectiveArgs,
    (rank, device): (u32, Device),
    listener: &TcpListener,
    peers: Vec<String>,
) -> anyhow::Result<Vec<Value>> {
    let identity = Identity { generation: Generation(1), rank: Rank(rank), peers };
    let collective = join(listener, identity, Deadlines { join: DEADLINE, operation: DEADLINE }, device)?;
    let mut figures = Vec::new();
    for mib in &args.mib {
        let elements = mib * (1 << 20) / 4;
        let mut tensor = Tensor::ones([elements], (Kind::Float, device));
        let rows = vec![elements; args.ranks as usize];
        let reduce_s = timed(args, collective.as_ref(), |c| Ok(c.all_reduce_sum(&mut tensor)?))?;
        let mine = Tensor::ones([elements], (Kind::Float, device));
        let gather_s = timed(args, collective.as_ref(), |c| {
            let _ = c.all_gather_rows(&mine, &rows)?;
            Ok(())
        })?;
        let gib = *mib as f64 / 1024.0;
        figures.push(json!({
            "mib": mib, "all_reduce_s": reduce_s, "all_gather_s": gather_s,
            "all_reduce_gib_per_s": gib / reduce_s, "all_gather_gib_per_s": gib * f64::from(args.ranks) / gather_s,
        }));
    }
    collective.barrier()?;
    Ok(figures)
}

fn timed(
    args: &CollectiveArgs,
    collective: &dyn Collective,
    mut body: impl FnMut(&dyn Collective) -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let mut seconds = Vec::new();
    for run in 0..args.warmup + args.repeats {
        collective.barrier()?;
        let began = Instant::now();
        body(collective)?;
        collective.finish()?;
        if run >= args.warmup {
            seconds.push(began.elapsed().as_secs_f64());
        }
    }
    Ok(median(&seconds))
}
