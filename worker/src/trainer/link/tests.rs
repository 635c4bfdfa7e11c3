//! The link against an agent in the same process.

use super::{
    Link, LinkError, Stop,
    fixtures::{commit, committed, finished, plan, progress},
};
use crate::supervisor::{
    frame,
    ipc::{Order, Report},
    socket,
};
use common::ids::{Generation, Step};
use std::{
    io::Write as _,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    time::{Duration, Instant},
};

const LONG: Duration = Duration::from_secs(30);

struct Agent {
    folder: tempfile::TempDir,
    listener: UnixListener,
}

struct Session(UnixStream);

impl Agent {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = socket::listen(&folder.path().join("0.sock")).unwrap();
        Self { folder, listener }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("0.sock")
    }

    fn link(&self, lease: Duration) -> Link {
        Link::connect(&self.socket(), "host:1".into(), lease).unwrap()
    }

    /// The next connection, after its hello.
    fn accept(&self, generation: Option<u64>) -> Session {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let mut session = Session(stream);
        let pid = std::process::id();
        let hello = Report::Hello { pid, peer: "host:1".into(), generation: generation.map(Generation) };
        assert_eq!(session.read(), Some(hello));
        session
    }
}

impl Session {
    fn read(&mut self) -> Option<Report> {
        frame::read(&mut self.0).unwrap()
    }

    fn order(&mut self, order: &Order) {
        self.0.write_all(&frame::encode(order).unwrap()).unwrap();
    }
}

/// Waits until `check` holds; the link has no event for what only a step looks at.
fn eventually(link: &Link, check: impl Fn() -> bool) {
    let end = Instant::now() + LONG;
    while !check() {
        assert!(Instant::now() < end, "not within {LONG:?}");
        let state = link.0.0.lock();
        drop(link.0.0.wait(state, Duration::from_millis(10)));
    }
}

#[test]
fn a_plan_runs_and_its_reports_arrive_in_order() {
    let agent = Agent::new();
    let link = agent.link(LONG);
    let mut session = agent.accept(None);
    session.order(&plan(1));
    assert_eq!(link.next_plan().unwrap().unwrap().generation, Generation(1));
    link.report(progress(1, 1));
    assert_eq!(session.read(), Some(progress(1, 1)));
    for step in 2..=50 {
        link.report(progress(1, step));
    }
    link.report(finished(1));
    assert!(link.flush(LONG));
    assert_eq!(session.read(), Some(progress(1, 50)));
    assert_eq!(session.read(), Some(finished(1)));
    drop(link);
    assert_eq!(session.read(), None);
}

#[test]
fn a_new_agent_is_told_again_and_its_repeated_plan_does_not_run_twice() {
    let agent = Agent::new();
    let link = agent.link(LONG);
    let mut session = agent.accept(None);
    session.order(&plan(1));
    link.next_plan().unwrap().unwrap();
    link.report(committed(1, 10));
    assert_eq!(session.read(), Some(committed(1, 10)));
    drop(session);
    let mut session = agent.accept(Some(1));
    assert_eq!(session.read(), Some(committed(1, 10)));
    session.order(&plan(1));
    session.order(&Order::Stop);
    eventually(&link, || link.stop_requested() == Some(Stop::Ordered));
    session.order(&plan(2));
    assert_eq!(link.next_plan().unwrap().unwrap().generation, Generation(2));
    assert_eq!(link.stop_requested(), None);
}

#[test]
fn reports_wait_for_an_agent_that_is_away() {
    let agent = Agent::new();
    let link = agent.link(LONG);
    let mut session = agent.accept(None);
    session.order(&plan(1));
    link.next_plan().unwrap().unwrap();
    let Agent { folder, listener } = agent;
    drop(listener);
    drop(session);
    eventually(&link, || link.0.0.lock().gone_since.is_some());
    link.report(committed(1, 10));
    assert!(!link.flush(Duration::from_millis(20)));
    let listener = socket::listen(&folder.path().join("0.sock")).unwrap();
    let mut session = Agent { folder, listener }.accept(Some(1));
    assert_eq!(session.read(), Some(committed(1, 10)));
    assert!(link.flush(LONG));
}

#[test]
fn without_an_agent_for_the_lease_the_stage_stops_and_there_is_no_next_plan() {
    let agent = Agent::new();
    let link = agent.link(Duration::from_millis(200));
    let mut session = agent.accept(None);
    session.order(&plan(1));
    link.next_plan().unwrap().unwrap();
    let orders = link.clone();
    let obeyed = std::thread::spawn(move || orders.manifest_orders().count());
    drop(agent);
    assert_eq!(link.stop_requested(), None);
    drop(session);
    eventually(&link, || link.stop_requested() == Some(Stop::AgentGone));
    assert_eq!(link.next_plan().unwrap(), None);
    assert_eq!(obeyed.join().unwrap(), 0);
}

#[test]
fn orders_to_commit_come_out_as_they_went_in() {
    let agent = Agent::new();
    let link = agent.link(LONG);
    let mut session = agent.accept(None);
    for step in [10, 20] {
        session.order(&commit(step));
    }
    let steps: Vec<Step> = link.manifest_orders().take(2).map(|(step, _)| step).collect();
    assert_eq!(steps, [Step(10), Step(20)]);
}

#[test]
fn what_cannot_be_understood_is_an_error_and_so_is_an_agent_that_never_comes() {
    let agent = Agent::new();
    let link = agent.link(LONG);
    let mut session = agent.accept(None);
    session.0.write_all(b"\x02\0\0\0{}").unwrap();
    assert!(matches!(link.next_plan(), Err(LinkError::Order(_))));
    let nowhere = agent.folder.path().join("1.sock");
    let error = Link::connect(&nowhere, "host:1".into(), Duration::ZERO).unwrap_err();
    assert!(error.to_string().contains("1.sock"), "{error}");
}
