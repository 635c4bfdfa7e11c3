//! A job of the real programs.

use crate::{Recipe, wait_for};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

/// How much longer a step of `clip` takes than it computes, as on a device that computes more: what a scenario does meanwhile
/// happens before the last step, and checkpoints are written between steps as they are there.
const PACE: &str = "clip.step=slow:50@1";
/// With it, trainers of all scenarios compute on a stand-in for a GPU.
const STAND_IN: &str = "LLM2CLIP_TEST_STAND_IN";
/// The longest any scenario waits for one thing.
const DEADLINE: Duration = Duration::from_secs(120);

/// One line of `metrics.jsonl`, as far as scenarios read it.
#[derive(Debug, Clone, Deserialize)]
pub struct Step {
    /// The step, from 1.
    pub step: u64,
    /// Its loss.
    pub loss: f64,
    /// The membership that computed it.
    pub generation: u64,
}

/// A folder with a recipe, and the programs to run it.
pub struct Job {
    folder: tempfile::TempDir,
    recipe: PathBuf,
    environment: Vec<(String, String)>,
}

impl Job {
    /// Writes the recipe into a folder of its own.
    pub fn new(recipe: &Recipe) -> Self {
        Self::with_environment(recipe, Vec::new())
    }

    /// As [`Job::new`], and its programs know these variables, too.
    pub fn with_environment(recipe: &Recipe, environment: Vec<(String, String)>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let recipe = recipe.write(folder.path());
        Self { folder, recipe, environment }
    }

    /// The folder of all that belongs to the job.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Whether the folder stays when this is dropped.
    pub fn keep(&mut self, keep: bool) {
        self.folder.disable_cleanup(keep);
    }

    /// The job's output folder.
    pub fn output(&self) -> PathBuf {
        self.folder.path().join("output")
    }

    /// The recipe's file.
    pub fn recipe(&self) -> &Path {
        &self.recipe
    }

    /// `llm2clip` with these arguments, in an environment of its own.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.around(Command::new(Self::binary("llm2clip")));
        command.args(arguments);
        command
    }

    /// A command in this job's environment.
    pub fn around(&self, mut command: Command) -> Command {
        command.current_dir(self.folder.path()).env("XDG_STATE_HOME", self.folder.path().join("state"));
        command.env("LLM2CLIP_CACHE", self.folder.path().join("cache"));
        // Scenarios share few cores: a thread that waits for another must not keep it from running.
        command.env("OMP_WAIT_POLICY", "passive").env("LLM2CLIP_FAILPOINTS", PACE);
        if std::env::var_os(STAND_IN).is_some() {
            command.envs(crate::stand_in::compiled().environment());
        }
        command.envs(self.environment.iter().cloned());
        command.env_remove("LLM2CLIP_COORDINATOR").stdin(Stdio::null());
        command
    }

    /// A program of this build.
    pub fn binary(name: &str) -> PathBuf {
        let here = std::env::current_exe().unwrap();
        let folder = here.parent().and_then(Path::parent).unwrap();
        let path = folder.join(name);
        assert!(path.exists(), "{} is missing: `cargo build --release --bins` first, or `make test`", path.display());
        path
    }

    /// Runs a command to its end.
    pub fn llm2clip(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs the recipe to its end with so many workers, and asks for exit code 0.
    pub fn run(&self, workers: u32) {
        let output = self.llm2clip(&["run", self.recipe.to_str().unwrap(), "--workers", &workers.to_string()]);
        assert!(output.status.success(), "{}", text(&output));
    }

    /// Starts the recipe and goes on.
    pub fn start(&self, workers: u32) -> Child {
        let mut command = self.command(&["run", self.recipe.to_str().unwrap(), "--workers", &workers.to_string()]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// What `-o json` of a verb over this job says.
    pub fn json(&self, verb: &str) -> Value {
        let output = self.llm2clip(&[verb, self.output().to_str().unwrap(), "-o", "json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{verb}: {error}\n{}", text(&output)))
    }

    /// What a verb over this job says to people.
    pub fn say(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.output();
        let mut all = vec![arguments[0], output.to_str().unwrap()];
        all.extend(&arguments[1..]);
        let done = self.llm2clip(&all);
        (done.status.code(), text(&done))
    }

    /// Every step of `clip` that was computed, in the file's order.
    pub fn steps(&self) -> Vec<Step> {
        self.steps_of("clip")
    }

    /// Every step of a stage that was computed, in the file's order.
    pub fn steps_of(&self, stage: &str) -> Vec<Step> {
        let text = std::fs::read_to_string(self.output().join(stage).join("metrics.jsonl")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits until a step is done.
    pub fn wait_for_step(&self, step: u64) {
        let what = format!("step {step}");
        wait_for(&self.output().join("clip"), &what, DEADLINE, || {
            self.steps().iter().any(|s| s.step >= step).then_some(())
        });
    }

    /// Waits until a checkpoint of this step or a later one is committed; returns its folder.
    pub fn wait_for_checkpoint(&self, step: u64) -> PathBuf {
        let folder = self.output().join("clip").join(format!("step-{step:09}"));
        // Woken by the metrics of later steps: the step's own folder is the trainers' to create.
        wait_for(&self.output().join("clip"), &format!("checkpoint of step {step}"), DEADLINE, || {
            folder.join("manifest.json").exists().then(|| folder.clone())
        })
    }

    /// What the manifest in this folder of the output says.
    pub fn manifest(&self, folder: &str) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.output().join(folder).join("manifest.json")).unwrap())
            .unwrap()
    }

    /// Every step was computed once, but for `lost` lines that went with a rank 0 that wrote them, and its loss is that of an undisturbed
    /// run with so many ranks, within `relative`; 0 is every bit. Returns the undisturbed job.
    ///
    /// # Panics
    /// When that is not so.
    pub fn check_undisturbed(&self, recipe: &Recipe, ranks: u32, relative: f64, lost: u64) -> Self {
        let found = self.steps();
        let mut times: BTreeMap<u64, u32> = BTreeMap::new();
        found.iter().for_each(|step| *times.entry(step.step).or_default() += 1);
        assert!(times.values().all(|times| *times == 1), "a step was computed twice: {times:?}");
        assert!(times.len() as u64 + lost >= recipe.steps, "{} lines of {}", times.len(), recipe.steps);
        // Which is not to begin with those who are there first.
        let undisturbed = Self::new(&Recipe { elastic: String::new(), ..recipe.clone() });
        undisturbed.run(ranks);
        let expected = losses(&undisturbed.steps());
        assert_eq!(expected.len() as u64, recipe.steps);
        for (step, loss) in losses(&found) {
            let expected = expected[&step];
            assert!((loss - expected).abs() <= relative * expected.abs(), "step {step}: {loss}, not {expected}");
        }
        undisturbed
    }

    /// How many trainers were started in all: each begins its log with what it computes on.
    pub fn trainers_started(&self) -> usize {
        let logs = std::fs::read_dir(self.output().join("logs")).unwrap().map(|entry| entry.unwrap());
        let own = logs.filter(|entry| entry.file_name().to_str().unwrap().starts_with("trainer-"));
        let begun = |text: String| text.lines().filter(|line| line.contains("computing device=")).count();
        own.map(|entry| begun(std::fs::read_to_string(entry.path()).unwrap())).sum()
    }

    /// The worker daemons of a `run`.
    pub fn workers(run: &Child) -> Vec<i32> {
        // A child belongs to the thread that started it.
        let threads = std::fs::read_dir(format!("/proc/{}/task", run.id())).unwrap();
        let children = threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("children")).unwrap());
        children.collect::<String>().split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }

    /// The trainers' processes, by rank.
    pub fn trainers(&self) -> Vec<i32> {
        let status = self.json("status");
        let ranks = status["ranks"].as_array().cloned().unwrap_or_default();
        ranks.iter().filter_map(|rank| rank["pid"].as_i64()).map(|pid| i32::try_from(pid).unwrap()).collect()
    }
}

/// A process and all that came of it, each before those that it started.
pub fn family(pid: i32) -> Vec<i32> {
    // A child belongs to the thread that started it.
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let children: String = children.collect();
    let below = children.split_whitespace().flat_map(|child| family(child.parse().unwrap()));
    std::iter::once(pid).chain(below).collect()
}

/// The loss by step; of a step that was computed again, the last.
pub fn losses(steps: &[Step]) -> BTreeMap<u64, f64> {
    steps.iter().map(|step| (step.step, step.loss)).collect()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
