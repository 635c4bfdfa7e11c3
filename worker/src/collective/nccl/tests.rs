//! NCCL's engine over a stand-in library (`stand_in/nccl.c`, compiled here): the contract, and every way to fail.

use super::*;
use crate::collective::{
    Identity,
    contract::{Engine, LONG, contract, numbers},
};
use cudarc::nccl::sys::cudaStream_t;
use std::{net::TcpListener, path::PathBuf, process::Command, sync::OnceLock, thread, time::Instant};
use tch::TchError;

const SOON: Duration = Duration::from_secs(2);

/// Compiles the stand-in with what it is to do wrong.
fn compiled(wrong: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libstub.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/stand_in/nccl.c");
    let mut command = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    command.args(["-shared", "-fPIC", "-O1", "-pthread", "-o"]).arg(&path).arg(source);
    command.args(wrong.iter().map(|word| format!("-D{word}")));
    assert!(command.status().unwrap().success(), "the C compiler that the build needs too");
    (folder, path)
}

fn stub(wrong: &[&str]) -> Arc<Library> {
    let (_folder, path) = compiled(wrong);
    Arc::new(Library::open(&[path]).unwrap())
}

/// The well-behaved one.
fn good() -> &'static Arc<Library> {
    static GOOD: OnceLock<Arc<Library>> = OnceLock::new();
    GOOD.get_or_init(|| stub(&[]))
}

type Count = unsafe extern "C" fn(*mut c_void) -> u64;

/// A queue of the stand-in's in place of a GPU's stream; tensors are the CPU's.
struct StubStream {
    stream: usize,
    issued: Count,
    passed: Count,
}

struct StubEvent {
    stream: usize,
    at: u64,
    passed: Count,
    /// Their memory stays until the queue has passed.
    _tensors: Vec<Tensor>,
}

impl StubStream {
    fn new(library: &Library) -> Self {
        // SAFETY: the library is open for good, and these are the signatures in `nccl.c`.
        unsafe {
            let handle = libloading::os::unix::Library::new(library.path()).unwrap();
            let new = *handle.get::<unsafe extern "C" fn() -> *mut c_void>("stub_stream_new").unwrap();
            let count = |name: &str| *handle.get::<Count>(name).unwrap();
            Self { stream: new() as usize, issued: count("stub_stream_issued"), passed: count("stub_stream_passed") }
        }
    }
}

impl Streams for StubStream {
    fn enter(&self) -> Result<(), TchError> {
        Ok(())
    }

    fn handle(&self) -> Result<cudaStream_t, TchError> {
        Ok(self.stream as cudaStream_t)
    }

    fn follow(&self) -> Result<(), TchError> {
        Ok(())
    }

    fn lead(&self, tensors: &[&Tensor]) -> Result<Box<dyn Passed>, TchError> {
        // SAFETY: the stream is never freed.
        let at = unsafe { (self.issued)(self.stream as *mut c_void) };
        let tensors = tensors.iter().map(|tensor| tensor.shallow_clone()).collect();
        Ok(Box::new(StubEvent { stream: self.stream, at, passed: self.passed, _tensors: tensors }))
    }
}

impl Passed for StubEvent {
    fn passed(&self) -> Result<bool, TchError> {
        // SAFETY: the stream is never freed.
        Ok(unsafe { (self.passed)(self.stream as *mut c_void) } >= self.at)
    }
}

fn join(
    library: &Arc<Library>,
    listener: &TcpListener,
    identity: &Identity,
    deadlines: Deadlines,
) -> Result<Box<dyn Collective>, CollectiveError> {
    let ring = TcpRing::join(listener, identity, deadlines.join, deadlines.join)?;
    let streams = Box::new(StubStream::new(library));
    Ok(Box::new(NcclCollective::join(ring, library.clone(), streams, Device::Cpu, deadlines)?))
}

/// Runs `body` as two ranks over a stand-in; results by rank.
fn two<T: Send>(library: &Arc<Library>, operation: Duration, body: impl Fn(&dyn Collective) -> T + Sync) -> Vec<T> {
    let join = |listener: &TcpListener, identity: Identity, deadlines| join(library, listener, &identity, deadlines);
    Engine { join: &join, device: |_| Device::Cpu }.ranks(2, operation, |collective| {
        // A rank that fails at once must not do so while the other still joins.
        collective.barrier().unwrap();
        body(collective)
    })
}

fn reduce(collective: &dyn Collective) -> Result<(), CollectiveError> {
    let mut x = numbers(0, &[64], Kind::Float, Device::Cpu);
    collective.all_reduce_sum(&mut x)
}

#[test]
fn nccl_keeps_the_contract_of_the_ring() {
    let join = |listener: &TcpListener, identity: Identity, deadlines| join(good(), listener, &identity, deadlines);
    contract(Engine { join: &join, device: |_| Device::Cpu }, &[2, 3, 4]);
}

#[test]
fn a_library_that_cannot_be_used_says_why() {
    let missing = Library::open(&["/nowhere/libnccl.so.2".into(), "libnowhere.so.9".into()]).unwrap_err();
    assert!(matches!(&missing, LibraryError::Missing { tried } if tried.len() == 2), "{missing}");
    let text = missing.to_string();
    assert!(text.contains("/nowhere/libnccl.so.2") && text.contains("LLM2CLIP_NCCL"), "{text}");
    let (_folder, path) = compiled(&["TOO_OLD"]);
    let old = Library::open(std::slice::from_ref(&path)).unwrap_err();
    assert_eq!(old, LibraryError::TooOld { found: Version(21_701), path });
    assert!(old.to_string().contains("2.17.1, needed is 2.18.0"), "{old}");
    let (_folder, path) = compiled(&["WITHOUT_ABORT"]);
    let lacking = Library::open(std::slice::from_ref(&path)).unwrap_err();
    assert_eq!(lacking, LibraryError::Symbol { name: "ncclCommAbort", path });
    assert_eq!(good().version(), Version(22_809));
}

#[test]
fn an_operation_that_does_not_end_is_named_at_its_deadline() {
    let library = stub(&["NEVER_ENDS"]);
    let errors = two(&library, Duration::from_millis(200), |collective| {
        let began = Instant::now();
        let error = reduce(collective).and_then(|()| collective.finish()).unwrap_err();
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        assert!(matches!(reduce(collective), Err(CollectiveError::Aborted { .. })), "it stays dead");
        error
    });
    // Number 0 is the join. The other may see its peer go before its own deadline.
    let named = |error: &CollectiveError| {
        matches!(error, CollectiveError::Stalled { operation: "all_reduce", sequence: 1, diagnosis, .. }
            if diagnosis.contains("diagnosis"))
    };
    assert!(errors.iter().any(named), "{errors:?}");
}

#[test]
fn the_monitor_ends_what_stalls_while_its_owner_computes() {
    let library = stub(&["NEVER_ENDS"]);
    let errors = two(&library, Duration::from_millis(100), |collective| {
        // When the other was first by more than the deadline, this fails at once.
        if let Err(error) = reduce(collective) {
            return error;
        }
        let began = Instant::now();
        // The owner is away. What it calls next does not reach the device.
        while began.elapsed() < Duration::from_millis(1500) {
            thread::park_timeout(Duration::from_millis(100));
        }
        let began = Instant::now();
        let error = reduce(collective).unwrap_err();
        assert!(began.elapsed() < Duration::from_millis(500));
        error
    });
    assert!(errors.iter().any(|error| matches!(error, CollectiveError::Stalled { sequence: 1, .. })), "{errors:?}");
}

#[test]
fn an_abort_is_not_held_up_by_nccl() {
    let library = stub(&["NEVER_ENDS", "SLOW_ABORT"]);
    let begun = std::sync::Barrier::new(2);
    let errors = two(&library, LONG, |collective| {
        reduce(collective).unwrap();
        begun.wait();
        if collective.rank() == Rank(0) {
            return thread::scope(|scope| {
                scope.spawn(|| {
                    thread::park_timeout(Duration::from_millis(50));
                    let began = Instant::now();
                    collective.abort("enough");
                    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
                });
                let began = Instant::now();
                let error = collective.finish().unwrap_err();
                assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
                error
            });
        }
        collective.finish().unwrap_err()
    });
    assert!(matches!(&errors[0], CollectiveError::Aborted { reason } if reason == "enough"), "{errors:?}");
    assert!(matches!(&errors[1], CollectiveError::PeerLost { peer: Rank(0), .. }), "{errors:?}");
}

#[test]
fn joining_ends_at_its_deadline() {
    let library = stub(&["NEVER_JOINS"]);
    let listeners = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let peers: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    let deadlines = Deadlines { join: Duration::from_millis(500), operation: LONG };
    let began = Instant::now();
    let errors = thread::scope(|scope| {
        let ranks = [0, 1].map(|rank: u32| {
            let (library, peers, listeners) = (&library, &peers, &listeners);
            scope.spawn(move || {
                let identity =
                    Identity { generation: common::ids::Generation(1), rank: Rank(rank), peers: peers.clone() };
                join(library, &listeners[rank as usize], &identity, deadlines).map(|_| ()).unwrap_err()
            })
        });
        ranks.map(|rank| rank.join().unwrap())
    });
    assert!(began.elapsed() < SOON + Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(errors.iter().any(|e| matches!(e, CollectiveError::Stalled { operation: "join", .. })), "{errors:?}");
}

#[test]
fn what_nccl_says_reaches_the_user() {
    let refused = two(&stub(&["REFUSES"]), LONG, |collective| reduce(collective).unwrap_err());
    // The other may see its peer leave first.
    let expected =
        "all_reduce number 1 on the GPU failed: ncclAllReduce: stub: invalid usage (stub: rank 0 called it twice)";
    assert!(refused.iter().any(|error| error.to_string() == expected), "{refused:?}");
    let later = two(&stub(&["FAILS_LATER"]), LONG, |collective| {
        let began = Instant::now();
        let error = reduce(collective).and_then(|()| collective.finish()).unwrap_err();
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        error
    });
    let remote = |error: &CollectiveError| {
        matches!(error, CollectiveError::Nccl { source: NcclError::Failed { failure: Failure::Remote, .. }, .. })
            && error.to_string().contains("network error (stub: connection reset by peer 10.0.0.7)")
    };
    assert!(later.iter().any(remote), "{later:?}");
}

#[test]
fn a_mistake_of_the_callers_harms_nobody() {
    two(good(), LONG, |collective| {
        let turned = numbers(0, &[2, 3], Kind::Float, Device::Cpu).tr();
        let refused = |result: Result<Tensor, CollectiveError>| {
            assert!(matches!(result, Err(CollectiveError::Unsupported { .. })), "{result:?}");
        };
        refused(collective.all_gather_rows(&turned, &[3, 3]));
        refused(collective.all_gather_rows(&numbers(0, &[2, 3], Kind::Bool, Device::Cpu), &[2, 2]));
        refused(collective.all_gather_rows(&numbers(0, &[2, 3], Kind::Float, Device::Cpu), &[3, 2, 1]));
        refused(collective.reduce_scatter_rows(&numbers(0, &[2, 3], Kind::Float, Device::Cpu), &[2, 2]));
        refused(collective.all_gather_rows(&Tensor::from(1.0f32), &[1, 1]));
        reduce(collective).unwrap();
        collective.barrier().unwrap();
    });
}
