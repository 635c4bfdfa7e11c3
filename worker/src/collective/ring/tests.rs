//! The contract over real sockets, with many shapes, and the ways to fail that only the ring has.

use super::*;
use crate::collective::{
    Deadlines,
    contract::{Case, Engine, LONG, check_operations, contract, numbers},
    join, join_unless,
};
use proptest::prelude::*;
use tch::Kind;

const RING: Engine<'_> = Engine {
    join: &|listener, identity, deadlines| join(listener, identity, deadlines, Device::Cpu),
    device: |_| Device::Cpu,
};

const DEADLINES: Deadlines = Deadlines { join: LONG, operation: LONG };

#[test]
fn the_ring_keeps_the_contract() {
    contract(RING, &[1, 3, 4]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_operation_gives_what_one_process_would(
        world in 1u32..=5, length in 0i64..70_000, width in 1i64..5, uneven in proptest::collection::vec(0i64..9, 5),
        kind in prop_oneof![Just(Kind::Float), Just(Kind::Double), Just(Kind::BFloat16), Just(Kind::Int64)], root in 0u32..5,
    ) {
        let case = Case { length, width, rows: uneven[..world as usize].to_vec(), kind, root: Rank(root % world) };
        RING.ranks(world, LONG, |collective| check_operations(collective, &case, Device::Cpu));
    }
}

#[test]
fn ranks_that_disagree_are_told_how() {
    let errors = RING.ranks(2, LONG, |collective| {
        let mut x = numbers(0, &[8 + i64::from(collective.rank().0) * 8], Kind::Float, Device::Cpu);
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
    let barrier = |rank: u32| {
        join(&listeners[rank as usize], identity(rank), DEADLINES, Device::Cpu).and_then(|ring| ring.barrier())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| barrier(1));
        barrier(0).unwrap();
        other.join().unwrap().unwrap();
    });
}

#[test]
fn a_peer_that_is_still_in_the_membership_before_is_waited_for() {
    let listeners = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let peers: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    let identity =
        |generation, rank| Identity { generation: Generation(generation), rank: Rank(rank), peers: peers.clone() };
    let (told, left) = (std::sync::atomic::AtomicBool::new(false), std::sync::atomic::Ordering::SeqCst);
    std::thread::scope(|scope| {
        // Rank 1 has the later plan and calls; rank 0 sends it away, as it waits for the rank 1 of before.
        let early = scope.spawn(|| join(&listeners[1], identity(5, 1), DEADLINES, Device::Cpu)?.barrier());
        let before = scope.spawn(|| {
            let in_vain = || told.load(left);
            join_unless(&listeners[0], identity(4, 0), DEADLINES, Device::Cpu, &in_vain).map(|_| ())
        });
        // Until its call was answered with a no, at the least.
        let mut stranger = TcpStream::connect(&peers[0]).unwrap();
        let hello = wire::Hello { generation: Generation(3), rank: Rank(1) }.encode();
        std::io::Write::write_all(&mut stranger, &hello).unwrap();
        assert_eq!(std::io::Read::read(&mut stranger, &mut [0]).unwrap(), 0, "it is sent away");
        told.store(true, left);
        assert!(before.join().unwrap().unwrap_err().to_string().contains("a later membership"));
        join(&listeners[0], identity(5, 0), DEADLINES, Device::Cpu).unwrap().barrier().unwrap();
        early.join().unwrap().unwrap();
    });
}

#[test]
fn a_trainer_of_another_version_is_told_from_a_stranger_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().to_string();
    let mut bytes = wire::Hello { generation: Generation(5), rank: Rank(1) }.encode();
    bytes[..8].copy_from_slice(b"l2c-ring");
    std::io::Write::write_all(&mut TcpStream::connect(&own).unwrap(), &bytes).unwrap();
    let identity = Identity { generation: Generation(5), rank: Rank(0), peers: vec![own, "127.0.0.1:1".to_owned()] };
    let deadlines = Deadlines { join: Duration::from_secs(2), ..DEADLINES };
    let error = join(&listener, identity, deadlines, Device::Cpu).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("another version"), "{error}");
}

#[test]
fn a_peer_that_never_listens_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peers = vec![listener.local_addr().unwrap().to_string(), "127.0.0.1:1".to_owned()];
    let identity = Identity { generation: Generation(1), rank: Rank(0), peers };
    let deadlines = Deadlines { join: Duration::from_millis(200), ..DEADLINES };
    let error = join(&listener, identity, deadlines, Device::Cpu).map(|_| ()).unwrap_err();
    assert!(matches!(error, CollectiveError::Join { .. }), "{error}");
}
