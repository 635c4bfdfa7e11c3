//! What every collective must do, whatever it runs on: the ring's tests, NCCL's on a stand-in, and those on real GPUs
//! run it. It knows a collective only as ranks on threads, each checking its own results against those of one process.

use super::{Collective, CollectiveError, Deadlines, Identity};
use common::ids::{Generation, Rank};
use std::{
    net::TcpListener,
    time::{Duration, Instant},
};
use tch::{Device, Kind, Tensor};

/// Longer than anything takes that goes well.
pub const LONG: Duration = Duration::from_secs(30);
/// How soon all must know that something failed.
const SOON: Duration = Duration::from_secs(2);

/// Joins the ranks of a generation, on a listener whose address the peers have.
type Join<'a> = &'a (dyn Fn(&TcpListener, Identity, Deadlines) -> Result<Box<dyn Collective>, CollectiveError> + Sync);

/// A collective to be tested.
#[derive(Clone, Copy)]
pub struct Engine<'a> {
    /// How it begins.
    pub join: Join<'a>,
    /// Where a rank's tensors are.
    pub device: fn(Rank) -> Device,
}

impl Engine<'_> {
    /// Runs `body` as each rank of a generation on threads; results by rank.
    pub fn ranks<T: Send>(
        &self,
        world: u32,
        operation: Duration,
        body: impl Fn(&dyn Collective) -> T + Sync,
    ) -> Vec<T> {
        let listeners: Vec<TcpListener> = (0..world).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let peers: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
        let (body, join) = (&body, self.join);
        let deadlines = Deadlines { join: LONG, operation };
        std::thread::scope(|scope| {
            let ranks: Vec<_> = listeners
                .iter()
                .zip(0..)
                .map(|(listener, rank)| {
                    let identity = Identity { generation: Generation(1), rank: Rank(rank), peers: peers.clone() };
                    scope.spawn(move || body(join(listener, identity, deadlines).unwrap().as_ref()))
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }
}

/// Small whole numbers: their sums are exact in every type.
pub fn numbers(seed: i64, shape: &[i64], kind: Kind, device: Device) -> Tensor {
    let count: i64 = shape.iter().product();
    let values: Vec<i64> = (0..count).map(|i| (i * 31 + seed * 17) % 13 - 6).collect();
    Tensor::from_slice(&values).to_kind(kind).view(shape).to_device(device)
}

/// What every operation is tried with.
#[derive(Debug, Clone)]
pub struct Case {
    /// Elements of what is reduced and sent.
    pub length: i64,
    /// Elements of a row.
    pub width: i64,
    /// Each rank's rows.
    pub rows: Vec<i64>,
    /// The type.
    pub kind: Kind,
    /// Who sends.
    pub root: Rank,
}

/// Cases that differ in what matters: nothing, one row, even and uneven rows, ranks without any, every type.
pub fn cases(world: u32) -> Vec<Case> {
    let even = vec![3; world as usize];
    let uneven: Vec<i64> = (0..i64::from(world)).map(|rank| (rank * 5 + 2) % 4).collect();
    let last: Vec<i64> = (0..world).map(|rank| i64::from(rank + 1 == world)).collect();
    let kinds = [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Int64];
    let mut cases = Vec::new();
    for (at, kind) in kinds.into_iter().enumerate() {
        for (rows, length, width) in
            [(&even, 70_001, 4), (&uneven, 1, 3), (&last, 1024, 1), (&vec![0; world as usize], 0, 2)]
        {
            cases.push(Case { length, width, rows: rows.clone(), kind, root: Rank(at as u32 % world) });
        }
    }
    cases
}

/// Every operation gives this rank what one process would have computed.
pub fn check_operations(collective: &dyn Collective, case: &Case, device: Device) {
    let Case { length, width, rows, kind, root } = case;
    let (rank, world) = (collective.rank().0, collective.world().0);
    let cpu = |seed: u32, shape: &[i64]| numbers(i64::from(seed), shape, *kind, Device::Cpu);
    let mine = |shape: &[i64]| numbers(i64::from(rank), shape, *kind, device);
    let sum = |shape: &[i64]| (0..world).fold(cpu(0, shape).zeros_like(), |sum, r| sum + cpu(r, shape));
    let own = rows[rank as usize];
    let total: i64 = rows.iter().sum();
    let mut reduced = mine(&[*length]);
    collective.all_reduce_sum(&mut reduced).unwrap();
    let gathered = collective.all_gather_rows(&mine(&[own, *width]), rows).unwrap();
    let scattered = collective.reduce_scatter_rows(&mine(&[total, *width]), rows).unwrap();
    let mut sent = mine(&[*length]);
    collective.broadcast(&mut sent, *root).unwrap();
    // Votes are of the CPU, wherever the rest is.
    let mut votes = numbers(i64::from(rank), &[3], Kind::Int64, Device::Cpu);
    collective.all_reduce_sum(&mut votes).unwrap();
    collective.barrier().unwrap();
    let same = |found: &Tensor, expected: &Tensor, what: &str| {
        assert_eq!((found.size(), found.kind()), (expected.size(), expected.kind()), "{what} at rank {rank}: {case:?}");
        assert!(&found.to_device(Device::Cpu) == expected, "{what} at rank {rank}: {case:?}");
    };
    same(&reduced, &sum(&[*length]), "all_reduce");
    let all: Vec<Tensor> = rows.iter().zip(0..).map(|(n, rank)| cpu(rank, &[*n, *width])).collect();
    same(&gathered, &Tensor::cat(&all, 0), "all_gather");
    let before = rows[..rank as usize].iter().sum();
    same(&scattered, &sum(&[total, *width]).narrow(0, before, own), "reduce_scatter");
    same(&sent, &cpu(root.0, &[*length]), "broadcast");
    let zeros = numbers(0, &[3], Kind::Int64, Device::Cpu).zeros_like();
    let votes_sum = (0..world).fold(zeros, |sum, r| sum + numbers(i64::from(r), &[3], Kind::Int64, Device::Cpu));
    same(&votes, &votes_sum, "all_reduce on the CPU");
}

/// All ranks have the same bits, and so has every run.
pub fn reductions_repeat(engine: Engine<'_>, world: u32) {
    let reduce = || {
        engine.ranks(world, LONG, |collective| {
            let device = (engine.device)(collective.rank());
            let factor = 0.1 + f64::from(collective.rank().0);
            let mut x = (Tensor::arange(100_003, (Kind::Float, device)) * factor).sin();
            collective.all_reduce_sum(&mut x).unwrap();
            collective.barrier().unwrap();
            x.to_device(Device::Cpu)
        })
    };
    let (first, second) = (reduce(), reduce());
    assert!(first.iter().chain(&second).all(|x| x == &first[0]));
}

/// A peer that goes away ends the operation of all, and one of its neighbours names it. Needs four ranks.
pub fn a_lost_peer_ends_all(engine: Engine<'_>) {
    let errors = engine.ranks(4, LONG, |collective| {
        collective.barrier().unwrap();
        if collective.rank() == Rank(2) {
            return None; // the connections close
        }
        let started = Instant::now();
        let mut x = numbers(0, &[1 << 20], Kind::Float, (engine.device)(collective.rank()));
        let error = collective.all_reduce_sum(&mut x).and_then(|()| collective.finish()).unwrap_err();
        assert!(started.elapsed() < SOON, "{error} after {:?}", started.elapsed());
        assert!(matches!(collective.barrier(), Err(CollectiveError::Aborted { .. })), "it stays dead");
        Some(error)
    });
    let named =
        |error: &Option<CollectiveError>| matches!(error, Some(CollectiveError::PeerLost { peer: Rank(2), .. }));
    assert!(errors.iter().any(named), "{errors:?}");
}

/// A peer that does not come to a barrier is named at the deadline.
pub fn a_late_peer_is_named(engine: Engine<'_>) {
    let given_up = std::sync::Barrier::new(2);
    let errors = engine.ranks(2, Duration::from_millis(200), |collective| {
        let error = if collective.rank() == Rank(0) { collective.barrier().err() } else { None };
        // The other stays connected until this one has given up.
        given_up.wait();
        let mut x = numbers(0, &[1], Kind::Float, (engine.device)(collective.rank()));
        error.or_else(|| collective.all_reduce_sum(&mut x).and_then(|()| collective.finish()).err())
    });
    assert!(
        matches!(errors[0], Some(CollectiveError::Deadline { peer: Rank(1), operation: "barrier", .. })),
        "{errors:?}"
    );
    assert!(errors[1].is_some());
}

/// An abort of a peer's, or from another thread, ends what waits.
pub fn an_abort_ends_what_waits(engine: Engine<'_>) {
    let reduce = |collective: &dyn Collective| {
        let mut x = numbers(0, &[1 << 20], Kind::Float, (engine.device)(collective.rank()));
        let started = Instant::now();
        let error = collective.all_reduce_sum(&mut x).and_then(|()| collective.finish()).err();
        assert!(started.elapsed() < SOON, "{error:?} after {:?}", started.elapsed());
        error
    };
    let errors = engine.ranks(2, LONG, |collective| {
        collective.barrier().unwrap();
        if collective.rank() == Rank(0) {
            return reduce(collective);
        }
        collective.abort("enough");
        collective.barrier().err()
    });
    assert!(matches!(&errors[1], Some(CollectiveError::Aborted { reason }) if reason == "enough"), "{errors:?}");
    assert!(errors[0].is_some());
    let given_up = std::sync::Barrier::new(2);
    let errors = engine.ranks(2, LONG, |collective| {
        collective.barrier().unwrap();
        let error = std::thread::scope(|scope| {
            (collective.rank() == Rank(0)).then(|| {
                scope.spawn(|| {
                    std::thread::park_timeout(Duration::from_millis(50));
                    collective.abort("enough");
                });
                reduce(collective)
            })
        });
        given_up.wait();
        error.flatten()
    });
    assert!(matches!(&errors[0], Some(CollectiveError::Aborted { reason }) if reason == "enough"), "{errors:?}");
}

/// All of it, with the ranks' number.
pub fn contract(engine: Engine<'_>, worlds: &[u32]) {
    for world in worlds {
        let cases = cases(*world);
        engine.ranks(*world, LONG, |collective| {
            for case in &cases {
                check_operations(collective, case, (engine.device)(collective.rank()));
            }
        });
        reductions_repeat(engine, *world);
    }
    a_late_peer_is_named(engine);
    an_abort_ends_what_waits(engine);
    if worlds.iter().any(|world| *world >= 4) {
        a_lost_peer_ends_all(engine);
    }
}
