//! The real worker program between a coordinator in this process and a trainer that is this test's own program.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use common::{
    ids::{Generation, Rank, Step},
    plan::TrainPlan,
    recipe::{Faults, Models, Recipe},
    status::{FailureCause, Inventory, Progress},
};
use proto::v1::{self, from_worker::Message as Said, to_worker::Message as Ordered, workers_server};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    process::Stdio,
    time::Duration,
};
use tokio::{
    process::{Child, Command},
    sync::mpsc,
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use worker::{supervisor::ipc::Report, trainer::link::Link};

/// The longest any test waits for one thing.
const DEADLINE: Duration = Duration::from_secs(30);
/// Names the socket when this program is to be the trainer.
const TRAINER_SOCKET: &str = "LLM2CLIP_TEST_SOCKET";

/// Not a test: the trainer that the worker starts. It reports one step of every plan, until the agent is gone.
#[test]
fn fake_trainer() {
    let Some(socket) = env::var_os(TRAINER_SOCKET) else { return };
    let link = Link::connect(Path::new(&socket), "127.0.0.1:1".into(), Duration::from_secs(10)).unwrap();
    eprintln!("waiting for a plan");
    while let Some(plan) = link.next_plan().unwrap() {
        eprintln!("generation {} runs", plan.generation);
        if plan.recipe.name == "broken" {
            link.report(Report::Failed {
                generation: Some(plan.generation),
                message: "the data is gone".into(),
                cause: None,
            });
            link.flush(DEADLINE);
            std::process::exit(1);
        }
        link.report(Report::Progress(Box::new(progress(plan.generation))));
    }
}

fn progress(generation: Generation) -> Progress {
    Progress { loss: Some(0.1 + 0.2), ..Progress::at(generation, 0, Step(1), 2) }
}

/// Hands every session to the test.
struct Coordinator(mpsc::Sender<Session>);

/// The coordinator's end of a session.
struct Session {
    orders: mpsc::Sender<Result<v1::ToWorker, Status>>,
    said: Streaming<v1::FromWorker>,
    /// Of the leader that this one plays.
    term: Option<u64>,
}

#[tonic::async_trait]
impl workers_server::Workers for Coordinator {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::ToWorker, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::FromWorker>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (orders, waiting) = mpsc::channel(16);
        self.0.send(Session { orders, said: request.into_inner(), term: None }).await.unwrap();
        Ok(Response::new(Box::pin(ReceiverStream::new(waiting))))
    }
}

impl Session {
    async fn order(&self, message: Ordered) {
        self.orders.send(Ok(v1::ToWorker { message: Some(message), term: self.term })).await.unwrap();
    }

    /// The next thing said that is no heartbeat.
    async fn said(&mut self) -> Said {
        loop {
            let message = tokio::time::timeout(DEADLINE, self.said.message()).await.expect("said within the deadline");
            match message.unwrap().unwrap().message.unwrap() {
                Said::Heartbeat(_) => {}
                said => return said,
            }
        }
    }

    async fn ready(&mut self) -> v1::TrainerReady {
        match self.said().await {
            Said::TrainerReady(ready) => ready,
            other => panic!("{other:?}"),
        }
    }

    async fn ended(&mut self) -> (v1::TrainerEnded, Option<FailureCause>) {
        match self.said().await {
            Said::TrainerEnded(ended) => {
                let cause = ended.cause.as_ref().map(|cause| serde_json::from_str(cause).unwrap());
                (ended, cause)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Has a trainer started and hands it a plan; returns its process.
    async fn start(&mut self, scene: &Scene, generation: u64) -> u32 {
        let output = scene.output().display().to_string();
        self.order(Ordered::StartTrainer(v1::StartTrainer { trainer: named(generation), output })).await;
        let ready = self.ready().await;
        assert_eq!((ready.trainer, ready.peer.as_str()), (named(generation), "127.0.0.1:1"));
        ready.pid
    }

    async fn plan(&self, scene: &Scene, generation: u64, recipe: &str) {
        let plan = scene.plan(generation, recipe);
        self.order(Ordered::SendPlan(v1::SendPlan { trainer: named(generation), plan })).await;
    }

    async fn progressed(&mut self, generation: u64) {
        let Said::TrainerProgress(said) = self.said().await else { panic!("no progress") };
        assert_eq!(said.trainer, named(generation));
        assert_eq!(serde_json::from_str::<Progress>(&said.progress).unwrap(), progress(Generation(generation)));
    }
}

fn named(generation: u64) -> Option<v1::TrainerRef> {
    Some(v1::TrainerRef { job: "demo-1".into(), generation, slot: 0 })
}

/// Plays a coordinator on a free port.
async fn serve() -> (String, mpsc::Receiver<Session>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, sessions) = mpsc::channel(4);
    let server =
        tonic::transport::Server::builder().add_service(workers_server::WorkersServer::new(Coordinator(sender)));
    tokio::spawn(server.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
    (url, sessions)
}

/// The next session with a coordinator, as the leader of a term; and what the worker said first.
async fn accept(sessions: &mut mpsc::Receiver<Session>, term: Option<u64>) -> (Session, v1::Register) {
    let next = tokio::time::timeout(DEADLINE, sessions.recv()).await;
    let mut session = Session { term, ..next.expect("a session within the deadline").unwrap() };
    let Said::Register(register) = session.said().await else { panic!("the first is Register") };
    assert_eq!(register.worker, "box");
    let inventory: Inventory = serde_json::from_str(&register.inventory).unwrap();
    assert_eq!((inventory.trainers, inventory.cores), (1, 2));
    assert_eq!((register.lowest_protocol, register.protocol), proto::version::SPOKEN);
    session.order(Ordered::Registered(v1::Registered { lease_ms: 600, protocol: register.protocol })).await;
    (session, register)
}

/// A coordinator, and a folder for a worker.
struct Scene {
    folder: tempfile::TempDir,
    url: String,
    sessions: mpsc::Receiver<Session>,
}

impl Scene {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("trainer.sh");
        let this = env::current_exe().unwrap();
        let text =
            format!("#!/bin/sh\n{TRAINER_SOCKET}=\"$3\" exec '{}' --exact fake_trainer --nocapture\n", this.display());
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let (url, sessions) = serve().await;
        Self { folder, url, sessions }
    }

    fn output(&self) -> PathBuf {
        self.folder.path().join("output")
    }

    fn worker(&self, arguments: &[&str]) -> Worker {
        self.worker_of(&self.url, arguments)
    }

    fn worker_of(&self, coordinators: &str, arguments: &[&str]) -> Worker {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llm2clip-worker"));
        command.args(["--coordinator", coordinators, "--id", "box", "--trainers", "1", "--cores", "2"]);
        // Longer than a Unix socket's path may be.
        command.arg("--state").arg(self.folder.path().join("s".repeat(120))).args(arguments);
        command.env("LLM2CLIP_TRAINER", self.folder.path().join("trainer.sh"));
        Worker(command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap())
    }

    /// The next session, registered, and the trainers that were said to live.
    async fn session(&mut self) -> (Session, Vec<v1::TrainerReady>) {
        let (session, register) = accept(&mut self.sessions, None).await;
        (session, register.trainers)
    }

    fn plan(&self, generation: u64, recipe: &str) -> String {
        let faults = Faults {
            max_failures: 0,
            max_no_progress: 3,
            storage_wait: Duration::from_secs(300),
            detect: Default::default(),
        };
        let model = Models::default();
        let (name, output) = (recipe.to_owned(), self.output());
        let recipe = Recipe {
            name,
            seed: 0,
            output,
            checkpoints: None,
            data: [].into(),
            text: [].into(),
            model,
            stages: vec![],
            faults,
            elastic: None,
        };
        let plan = TrainPlan {
            schema: 1,
            job: "demo-1".parse().unwrap(),
            generation: Generation(generation),
            rank: Rank(0),
            peers: vec!["127.0.0.1:1".into()],
            stage: 0,
            resume: None,
            from_memory: false,
            at_once: false,
            recipe,
            output: self.output(),
        };
        serde_json::to_string(&plan).unwrap()
    }
}

struct Worker(Child);

impl Worker {
    fn signal(&self, signal: Signal) {
        kill(self.0.id().unwrap(), signal);
    }

    /// Waits for its end: its exit code and what it printed.
    async fn wait(self) -> (Option<i32>, String) {
        let end = tokio::time::timeout(DEADLINE, self.0.wait_with_output()).await;
        let output = end.expect("it ends within the deadline").unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }
}

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with('Z'))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_killed_by_signal_9_is_told_with_its_last_lines() {
    let mut scene = Scene::new().await;
    let worker = scene.worker(&["--with-parent"]);
    let (mut session, trainers) = scene.session().await;
    assert_eq!(trainers, []);
    let pid = session.start(&scene, 1).await;
    session.plan(&scene, 1, "demo").await;
    session.progressed(1).await;
    kill(pid, Signal::KILL);
    let (ended, cause) = session.ended().await;
    assert_eq!((ended.trainer, ended.pid, cause), (named(1), pid, Some(FailureCause::Signal { signal: 9 })));
    assert!(ended.last_lines.contains(&"generation 1 runs".to_owned()), "{:?}", ended.last_lines);
    let by_rank = fs::canonicalize(scene.output().join("logs/gen-00001-rank-00000.log")).unwrap();
    assert_eq!(by_rank, fs::canonicalize(&ended.log).unwrap());
    assert!(ended.log.ends_with("/logs/trainer-box-0-gen-00001.log"), "{}", ended.log);

    session.start(&scene, 2).await;
    session.plan(&scene, 2, "broken").await;
    let (_, cause) = session.ended().await;
    assert_eq!(cause, Some(FailureCause::Error { message: "the data is gone".into() }));

    let pid = session.start(&scene, 3).await;
    worker.signal(Signal::TERM);
    assert_eq!(worker.wait().await, (Some(0), String::new()));
    assert!(!alive(pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_worker_takes_up_the_trainer_that_lives() {
    let mut scene = Scene::new().await;
    for end in [Signal::TERM, Signal::KILL] {
        let generation = if end == Signal::TERM { 1 } else { 4 };
        let worker = scene.worker(&[]);
        let (mut session, _) = scene.session().await;
        let pid = session.start(&scene, generation).await;
        session.plan(&scene, generation, "demo").await;
        session.progressed(generation).await;
        worker.signal(end);
        let (code, _) = worker.wait().await;
        assert_eq!(code, (end == Signal::TERM).then_some(0));
        assert!(alive(pid));

        let worker = scene.worker(&[]);
        let (mut session, trainers) = scene.session().await;
        assert_eq!(trainers, [v1::TrainerReady { trainer: named(generation), pid, peer: "127.0.0.1:1".into() }]);
        assert_eq!(session.ready().await.pid, pid); // Its hello to the new agent.
        assert_eq!(session.start(&scene, generation + 1).await, pid);
        session.plan(&scene, generation + 1, "demo").await;
        session.progressed(generation + 1).await;
        session
            .order(Ordered::EndTrainer(v1::EndTrainer {
                trainer: named(generation + 1),
                grace_ms: 5000,
                ..Default::default()
            }))
            .await;
        let (ended, cause) = session.ended().await;
        assert_eq!((ended.trainer, ended.pid), (named(generation + 1), pid));
        assert_eq!(cause, Some(FailureCause::Signal { signal: 15 }), "as it truly ended");
        worker.signal(Signal::TERM);
        worker.wait().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_trainer_ended_while_no_daemon_was_there_is_told_by_the_next_one() {
    let mut scene = Scene::new().await;
    let worker = scene.worker(&[]);
    let (mut session, _) = scene.session().await;
    let pid = session.start(&scene, 1).await;
    session.plan(&scene, 1, "demo").await;
    session.progressed(1).await;
    worker.signal(Signal::KILL);
    worker.wait().await;
    kill(pid, Signal::KILL);
    while alive(pid) {
        tokio::task::yield_now().await;
    }
    let worker = scene.worker(&[]);
    let (mut session, trainers) = scene.session().await;
    assert_eq!(trainers, []);
    let (ended, cause) = session.ended().await;
    assert_eq!((ended.trainer, ended.pid, cause), (named(1), pid, Some(FailureCause::Signal { signal: 9 })));
    assert!(ended.last_lines.contains(&"generation 1 runs".to_owned()), "{:?}", ended.last_lines);
    worker.signal(Signal::TERM);
    worker.wait().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_went_away_hears_of_an_end_when_it_is_back() {
    let mut scene = Scene::new().await;
    let worker = scene.worker(&["--with-parent"]);
    let (mut session, _) = scene.session().await;
    let pid = session.start(&scene, 1).await;
    drop(session);
    let (mut session, trainers) = scene.session().await;
    assert_eq!(trainers.len(), 1);
    kill(pid, Signal::KILL);
    let (first, _) = session.ended().await;
    drop(session);
    let (mut session, trainers) = scene.session().await;
    assert_eq!(trainers, []);
    assert_eq!(session.ended().await.0, first);
    worker.signal(Signal::TERM);
    worker.wait().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_that_a_worker_says_is_heard() {
    let mut scene = Scene::new().await;
    for generation in 1..=10 {
        let worker = scene.worker(&["--with-parent"]);
        let (mut session, _) = scene.session().await;
        let pid = session.start(&scene, generation).await;
        worker.signal(Signal::TERM);
        let (ended, _) = session.ended().await;
        assert_eq!((ended.trainer, ended.pid), (named(generation), pid));
        assert!(session.said.message().await.unwrap().is_none(), "and nothing more");
        drop(session);
        assert_eq!(worker.wait().await.0, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_worker_in_the_same_folder_is_refused() {
    let mut scene = Scene::new().await;
    let first = scene.worker(&["--with-parent"]);
    let _session = scene.session().await;
    assert_eq!(scene.worker(&[]).wait().await, (Some(1), String::new()));
    first.signal(Signal::TERM);
    assert_eq!(first.wait().await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_to_whom_a_standby_names_and_obeys_no_deposed_leader() {
    let scene = Scene::new().await;
    let (mut first, (other, mut second)) = (scene.sessions, serve().await);
    let scene = Scene { sessions: mpsc::channel(1).1, ..scene };
    let worker = scene.worker_of(&format!("{},{other}", scene.url), &["--with-parent"]);
    let standby = async |sessions: &mut mpsc::Receiver<Session>, leader: Option<&str>| {
        let asked = tokio::time::timeout(DEADLINE, sessions.recv()).await.unwrap().unwrap();
        asked.orders.send(Err(proto::leader::standby(leader))).await.unwrap();
    };
    standby(&mut first, Some(&other)).await;
    let (mut session, register) = accept(&mut second, Some(7)).await;
    assert_eq!(register.term, None);
    let pid = session.start(&scene, 1).await;
    session.plan(&scene, 1, "demo").await;
    session.progressed(1).await;
    drop(session);

    // Its trainer goes on while nobody leads, and lives to see the next leader.
    standby(&mut first, None).await;
    standby(&mut second, Some(&scene.url)).await;
    let (mut session, register) = accept(&mut first, Some(9)).await;
    assert_eq!((register.term, register.trainers.len()), (Some(7), 1));
    assert_eq!(register.trainers[0].pid, pid);
    // An order under an earlier term, as of a leader that was stopped and goes on: not obeyed, and the session is over.
    session.term = Some(7);
    session.order(Ordered::EndTrainer(v1::EndTrainer { trainer: named(1), grace_ms: 0, ..Default::default() })).await;
    while let Ok(Some(_)) = tokio::time::timeout(DEADLINE, session.said.message()).await.unwrap() {}
    assert!(alive(pid));
    // Nor is a session taken up with it.
    let (mut session, register) = accept(&mut second, Some(7)).await;
    assert_eq!(register.term, Some(9));
    while let Ok(Some(_)) = tokio::time::timeout(DEADLINE, session.said.message()).await.unwrap() {}
    let (mut session, register) = accept(&mut first, Some(9)).await;
    assert_eq!(register.trainers[0].pid, pid);
    session
        .order(Ordered::EndTrainer(v1::EndTrainer { trainer: named(1), grace_ms: 5000, ..Default::default() }))
        .await;
    assert_eq!(session.ended().await.0.pid, pid);
    worker.signal(Signal::TERM);
    assert_eq!(worker.wait().await.0, Some(0));
}
