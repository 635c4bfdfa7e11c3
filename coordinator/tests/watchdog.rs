//! The sign of life is the loop's own: when the loop is stuck there is none, though the rest of the process goes on.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

#[allow(dead_code, unused_imports, reason = "what other tests need")]
mod support;

use common::daemon::notify::Manager;
use coordinator::{
    job::{self, Submission},
    runtime::{Runtime, RuntimeConfig},
    store::MemoryStore,
};
use std::{
    os::unix::net::UnixDatagram,
    sync::{Condvar, Mutex},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Whether decisions may be made.
static OPEN: (Mutex<bool>, Condvar) = (Mutex::new(true), Condvar::new());

fn open(open: bool) {
    *OPEN.0.lock().unwrap() = open;
    OPEN.1.notify_all();
}

/// How long the manager would wait.
const LIMIT: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_loop_that_is_stuck_gives_no_sign_of_life() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let config = RuntimeConfig {
        manager: Manager::at(path.to_str().unwrap(), Some(LIMIT)).unwrap(),
        decide: |state, event, now| {
            let held = OPEN.1.wait_while(OPEN.0.lock().unwrap(), |open| !*open);
            drop(held);
            job::transition(state, event, now)
        },
        ..RuntimeConfig::default()
    };
    let (handle, runtime) = Runtime::open(MemoryStore::default(), config).await.unwrap();
    let token = CancellationToken::new();
    let looping = tokio::spawn(runtime.run(token.clone()));
    let submission = Submission {
        job: "demo-1".parse().unwrap(),
        recipe: support::recipe(folder.path()),
        world_size: common::ids::WorldSize(1),
    };
    handle.submit(submission).await.unwrap();
    let heard = |within: Duration| {
        socket.set_read_timeout(Some(within)).unwrap();
        let mut buffer = [0; 64];
        socket.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())
    };
    for _ in 0..3 {
        assert_eq!(heard(LIMIT).as_deref(), Some(b"WATCHDOG=1".as_slice()), "the loop lives");
    }
    open(false);
    // One may have been on its way.
    let _ = heard(Duration::from_millis(700));
    assert_eq!(heard(2 * LIMIT), None, "the loop is stuck");
    open(true);
    assert!(heard(LIMIT).is_some(), "and goes on");
    token.cancel();
    looping.await.unwrap().unwrap();
}
