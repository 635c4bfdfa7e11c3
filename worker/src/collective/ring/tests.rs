//! Every operation against the same sum made in one place, over real sockets, and every way to fail.

use super::*;
use crate::collective::join;
use proptest::prelude::*;
use tch::Kind;

const LONG: Duration = Duration::from_secs(30);

/// Runs `body` as each rank of a ring on threads; results by rank.
fn ring<T: Send>(world: u32, operation: Duration, body: impl Fn(&dyn Collective) -> T + Sync) -> Vec<T> {
    let listeners: Vec<TcpListener> = (0..world).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let peers: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    let body = &body;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = listeners
            .iter()
            .zip(0..)
            .map(|(listener, rank)| {
                let identity = Identity { generation: Generation(1), rank: Rank(rank), peers: peers.clone() };
                scope.spawn(move || body(join(listener, identity, operation, LONG).unwrap().as_ref()))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Small whole numbers: their sums are exact in every type.
fn numbers(seed: i64, shape: &[i64], kind: Kind) -> Tensor {
    let count: i64 = shape.iter().product();
    let values: Vec<i64> = (0..count).map(|i| (i * 31 + seed * 17) % 13 - 6).collect();
    Tensor::from_slice(&values).to_kind(kind).view(shape)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_operation_gives_what_one_process_would(
        world in 1u32..=5, length in 0i64..70_000, width in 1i64..5, uneven in proptest::collection::vec(0i64..9, 5),
        kind in prop_oneof![Just(Kind::Float), Just(Kind::Double), Just(Kind::BFloat16), Just(Kind::Int64)], root in 0u32..5,
    ) {
        let rows = &uneven[..world as usize];
        let total: i64 = rows.iter().sum();
        let root = root % world;
        let sum = |shape: &[i64]| (0..world).fold(numbers(0, shape, kind).zeros_like(), |sum, r| sum + numbers(i64::from(r), shape, kind));
        let found = ring(world, LONG, |collective| {
            let rank = i64::from(collective.rank().0);
            let mut reduced = numbers(rank, &[length], kind);
            collective.all_reduce_sum(&mut reduced).unwrap();
            let gathered = collective.all_gather_rows(&numbers(rank, &[rows[rank as usize], width], kind), rows).unwrap();
            let scattered = collective.reduce_scatter_rows(&numbers(rank, &[total, width], kind), rows).unwrap();
            let mut sent = numbers(rank, &[length], kind);
            collective.broadcast(&mut sent, Rank(root)).unwrap();
            collective.barrier().unwrap();
            (reduced, gathered, scattered, sent)
        });
        let all: Vec<Tensor> = rows.iter().zip(0..).map(|(n, rank)| numbers(rank, &[*n, width], kind)).collect();
        let (all, whole) = (Tensor::cat(&all, 0), sum(&[total, width]));
        for (rank, (reduced, gathered, scattered, sent)) in found.iter().enumerate() {
            prop_assert!(reduced == &sum(&[length]), "all_reduce at rank {}", rank);
            prop_assert!(gathered == &all, "all_gather at rank {}", rank);
            let mine = whole.narrow(0, rows[..rank].iter().sum(), rows[rank]);
            prop_assert!(scattered == &mine, "reduce_scatter at rank {}", rank);
            prop_assert!(sent == &numbers(i64::from(root), &[length], kind), "broadcast at rank {}", rank);
        }
    }
}

#[test]
fn all_ranks_have_the_same_bits_and_so_has_every_run() {
    let reduce = || {
        ring(3, LONG, |collective| {
            let mut x =
                (Tensor::arange(100_003, (Kind::Float, Device::Cpu)) * (0.1 + f64::from(collective.rank().0))).sin();
            collective.all_reduce_sum(&mut x).unwrap();
            x
        })
    };
    let (first, second) = (reduce(), reduce());
    assert!(first.iter().chain(&second).all(|x| x == &first[0]));
}

#[test]
fn a_peer_that_goes_away_ends_the_operation_of_all() {
    let errors = ring(4, LONG, |collective| {
        collective.barrier().unwrap();
        if collective.rank() == Rank(2) {
            return None; // the connections close
        }
        let started = Instant::now();
        let mut x = numbers(0, &[1 << 20], Kind::Float);
        let error = collective.all_reduce_sum(&mut x).unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(2), "{error} after {:?}", started.elapsed());
        assert!(matches!(collective.barrier(), Err(CollectiveError::Aborted { .. })), "it stays dead");
        Some(error)
    });
    let named =
        |error: &Option<CollectiveError>| matches!(error, Some(CollectiveError::PeerLost { peer: Rank(2), .. }));
    assert!(errors.iter().any(named), "{errors:?}");
}

#[test]
fn a_peer_that_does_not_come_is_named_at_the_deadline() {
    let given_up = std::sync::Barrier::new(2);
    let errors = ring(2, Duration::from_millis(200), |collective| {
        let error = if collective.rank() == Rank(0) { collective.barrier().err() } else { None };
        // The other stays connected until this one has given up.
        given_up.wait();
        error.or_else(|| collective.all_reduce_sum(&mut numbers(0, &[1], Kind::Float)).err())
    });
    assert!(
        matches!(errors[0], Some(CollectiveError::Deadline { peer: Rank(1), operation: "barrier", .. })),
        "{errors:?}"
    );
    assert!(errors[1].is_some());
}

#[test]
fn an_abort_from_another_thread_ends_an_operation_that_waits() {
    let errors = ring(2, LONG, |collective| {
        if collective.rank() == Rank(1) {
            collective.abort("enough");
            return collective.barrier().err();
        }
        let started = Instant::now();
        let error = collective.barrier().err();
        assert!(started.elapsed() < Duration::from_secs(2));
        error
    });
    assert!(matches!(&errors[1], Some(CollectiveError::Aborted { reason }) if reason == "enough"), "{errors:?}");
    assert!(errors[0].is_some());
}

#[test]
fn ranks_that_disagree_are_told_how() {
    let errors = ring(2, LONG, |collective| {
        let mut x = numbers(0, &[8 + i64::from(collective.rank().0) * 8], Kind::Float);
        collective.all_reduce_sum(&mut x).err().map(|error| error.to_string()).unwrap_or_default()
    });
    assert!(errors.iter().any(|error| error.contains("bytes, due are all_reduce")), "{errors:?}");
}

#[test]
fn a_caller_of_another_generation_is_sent_away() {
    let listeners = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let peers: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    let stale = wire::Hello { generation: Generation(4), rank: Rank(1) }.encode();
    let mut stranger = TcpStream::connect(&peers[0]).unwrap();
    std::io::Write::write_all(&mut stranger, &stale).unwrap();
    let identity = |rank| Identity { generation: Generation(5), rank: Rank(rank), peers: peers.clone() };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| join(&listeners[1], identity(1), LONG, LONG).unwrap().barrier());
        join(&listeners[0], identity(0), LONG, LONG).unwrap().barrier().unwrap();
        other.join().unwrap().unwrap();
    });
}

#[test]
fn a_peer_that_never_listens_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peers = vec![listener.local_addr().unwrap().to_string(), "127.0.0.1:1".to_owned()];
    let identity = Identity { generation: Generation(1), rank: Rank(0), peers };
    let error = join(&listener, identity, LONG, Duration::from_millis(200)).map(|_| ()).unwrap_err();
    assert!(matches!(error, CollectiveError::Join { .. }), "{error}");
}
