//! What a sick server does to us: a delay while it passes, an error that says all when it does not, never a hang.

use super::{
    at, contents, limits,
    proxy::{Fault, Proxy},
    server::Server,
};
use crate::storage::{Limits, Location, Storage, StorageError};
use std::time::{Duration, Instant};

/// Short enough for a test to wait for.
fn impatient() -> Limits {
    Limits { attempt: Duration::from_millis(400), deadline: Duration::from_millis(1500), ..limits() }
}

fn sick(fault: impl Fn(u64) -> Fault + Send + Sync + 'static, limits: Limits) -> (Server, Proxy, Storage) {
    let server = Server::start();
    std::fs::write(server.bucket().join("x.tar"), contents(2000)).unwrap();
    let proxy = Proxy::start(server.address, fault);
    let storage = Server::storage_through(proxy.address, limits);
    (server, proxy, storage)
}

fn here() -> Location {
    at("s3://bucket/x.tar")
}

/// Faults that pass: the read is right all the same.
fn check_passing(fault: Fault) {
    let (_server, proxy, storage) = sick(move |n| if n < 3 { fault } else { Fault::None }, limits_for(fault));
    let mut bytes = Vec::new();
    storage.read_range(&here(), 100, 800, &mut bytes).unwrap();
    assert_eq!(bytes, contents(2000)[100..900], "{fault:?}");
    assert_eq!(proxy.requests(), 4, "{fault:?}");
}

/// Faults that stay: an error in time that says where, how often and what came last.
fn check_staying(fault: Fault, answer: &str) {
    let (_server, proxy, storage) = sick(move |_| fault, impatient());
    let started = Instant::now();
    let mut bytes = Vec::new();
    let error = storage.read_range(&here(), 100, 800, &mut bytes).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(10), "{fault:?} held the reader for {:?}", started.elapsed());
    let StorageError::GaveUp { attempts, .. } = &error else { panic!("{fault:?}: {error}") };
    let came = proxy.requests();
    // The last try may be cut off by the deadline before it has reached the proxy.
    assert!(
        *attempts >= 2 && (came..=came + 1).contains(&u64::from(*attempts)),
        "{fault:?}: {attempts} tries, {came} came"
    );
    let text = error.to_string();
    for part in ["s3://bucket/x.tar", &format!("tried {attempts} times"), answer] {
        assert!(text.contains(part), "{fault:?}: `{part}` is not in: {text}");
    }
}

fn limits_for(fault: Fault) -> Limits {
    match fault {
        Fault::Stall => Limits { attempt: Duration::from_millis(400), ..limits() },
        _ => limits(),
    }
}

#[test]
fn faults_that_pass_cost_time_only() {
    for fault in [Fault::Unavailable, Fault::Stall, Fault::Cut, Fault::Short, Fault::Lost] {
        check_passing(fault);
    }
}

#[test]
fn a_server_that_stays_unavailable_is_given_up() {
    check_staying(Fault::Unavailable, "503");
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    check_staying(Fault::Stall, "within 0.4 s");
}

#[test]
fn a_body_that_always_breaks_off_is_never_taken_for_whole() {
    check_staying(Fault::Cut, "body");
}

#[test]
fn a_body_of_the_wrong_length_is_never_taken_for_whole() {
    check_staying(Fault::Short, "500 bytes from 0 on, where 1000 from 0 on are due");
}

#[test]
fn an_answer_that_is_always_lost_is_given_up() {
    check_staying(Fault::Lost, "connection");
}

#[test]
fn a_port_where_nobody_listens_is_given_up_with_the_reason() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let storage = Server::storage_through(closed, impatient());
    let error = storage.stat(&here()).unwrap_err();
    assert!(matches!(error, StorageError::GaveUp { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[test]
fn a_write_whose_answer_was_lost_is_known_for_its_own() {
    let (server, proxy, storage) = sick(|n| if n == 0 { Fault::Lost } else { Fault::None }, limits());
    let manifest = at("s3://bucket/manifest.json");
    assert!(storage.put_if_absent(&manifest, b"ours".to_vec()).unwrap());
    assert_eq!(proxy.requests(), 3, "lost, refused, looked at");
    assert_eq!(std::fs::read(server.bucket().join("manifest.json")).unwrap(), b"ours");
    assert!(!storage.put_if_absent(&manifest, b"ours".to_vec()).unwrap());
}

#[test]
fn a_write_that_another_one_won_while_the_answer_was_lost_is_not_taken_for_its_own() {
    let (server, _proxy, storage) = sick(|n| if n == 0 { Fault::Unavailable } else { Fault::None }, limits());
    let manifest = at("s3://bucket/manifest.json");
    server.storage(limits()).put(&manifest, b"theirs".to_vec()).unwrap();
    assert!(!storage.put_if_absent(&manifest, b"ours".to_vec()).unwrap());
}

#[test]
fn a_listing_whose_second_page_fails_goes_on_and_is_whole() {
    let (server, proxy, storage) = sick(|n| if n == 1 { Fault::Unavailable } else { Fault::None }, limits());
    for number in 0..1500 {
        std::fs::write(server.bucket().join(format!("{number:05}.tar")), b"x").unwrap();
    }
    let found = storage.list(&at("s3://bucket/0*.tar")).unwrap();
    assert_eq!(found.len(), 1500);
    // This server lists without ETags, so there is a look at each object beside the listing's requests.
    assert_eq!(proxy.requests() - 1500, 3, "the first page is not asked for again");
}

#[test]
fn readers_that_wait_for_one_block_all_get_the_error() {
    let (_server, _proxy, storage) = sick(|_| Fault::Unavailable, impatient());
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let error = storage.read_range(&here(), 0, 10, &mut Vec::new()).unwrap_err();
                assert!(matches!(error, StorageError::GaveUp { .. }), "{error}");
            });
        }
    });
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn a_cancelled_read_ends_at_once() {
    let (_server, _proxy, storage) = sick(|_| Fault::Stall, Limits { attempt: Duration::from_secs(600), ..limits() });
    let started = Instant::now();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| storage.read_range(&here(), 0, 10, &mut Vec::new()));
        storage.cancel();
        let error = reader.join().unwrap().unwrap_err();
        assert!(matches!(error, StorageError::Cancelled { .. }), "{error}");
    });
    assert!(started.elapsed() < Duration::from_secs(10));
}
