//! A soak from its beginning to its end.

use super::{
    account::{Entry, Report},
    blow::Blow,
    ground::{DEVICE, Ground, MACHINES, keep},
    metrics::Metrics,
};
use crate::{Job, Recipe, Rng, losses};
use std::{
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

/// How often processes and steps are looked at.
const LOOK: Duration = Duration::from_millis(10);
/// How long there may be no new step.
const STANDSTILL: Duration = Duration::from_secs(180);
/// Steps of the job that tells how long an undisturbed step takes, and from which on it is asked.
const TRY: (u64, u64) = (60, 20);
/// The effective training time that is asked of a soak which is long enough, and from how many failures on.
const EFFECTIVE: (f64, u32) = (0.81, 50);

/// How many failures, how far apart on average, and the seed of all that is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Soak {
    /// How many.
    pub failures: u32,
    /// Of an exponential distribution.
    pub mean: Duration,
    /// One seed is one order of victims and times.
    pub seed: u64,
}

impl Soak {
    /// Runs it. All losses must be those of an undisturbed training, in every bit: the number of ranks is the same whenever a step is
    /// taken, so that nothing rounds otherwise, however long it takes. No step may be computed twice while a rank lives.
    ///
    /// Everything that the programs said is kept in a folder, which is named at the beginning, and deleted when all went well.
    ///
    /// # Panics
    /// When something of this does not hold.
    pub fn run(&self) {
        let mut job = Job::new(&recipe(TRY.0));
        job.keep(true);
        let folder = job.folder().to_owned();
        eprintln!("soak: {self:?}; what the programs say is in {}", folder.display());
        let done = self.on(&job);
        job.keep(false);
        let Some(report) = done else { return };
        println!("{report}");
        println!("{}", serde_json::to_string(&report).unwrap());
        let (least, from) = EFFECTIVE;
        assert!(report.failures < from || report.effective >= least, "effective training time below {least}");
    }

    fn on(&self, home: &Job) -> Option<Report> {
        let mut ground = Ground::start(home)?;
        let step_s = undisturbed_step(&ground, home);
        let mut rng = Rng::new(self.seed, "when");
        let waits: Vec<Duration> = (0..=self.failures).map(|_| rng.exponential(self.mean)).collect();
        let window: Duration = waits.iter().sum();
        // No disturbed training takes more.
        let recipe = recipe((window.as_secs_f64() / step_s) as u64 + 40);
        eprintln!(
            "an undisturbed step takes {step_s:.3} s; {} steps, {:.0} s of failures",
            recipe.steps,
            window.as_secs_f64()
        );
        let mut job = Job::new(&recipe);
        job.keep(true);
        eprintln!("the job's output is in {}", job.output().display());
        let id = launch(&ground, &job);
        let mut metrics = Metrics::of(job.output().join("clip").join("metrics.jsonl"));
        let mut report = self.strike(&mut ground, &mut metrics, &waits, step_s);
        finish(&mut ground, &mut metrics, &id, home.folder());
        report.own_ends = ground.own_ends;
        std::fs::write(home.folder().join("soak.json"), serde_json::to_string_pretty(&report).unwrap()).unwrap();
        drop(ground);
        compare(&job, &recipe, &report);
        job.keep(false);
        Some(report)
    }

    fn strike(&self, ground: &mut Ground<'_>, metrics: &mut Metrics, waits: &[Duration], step_s: f64) -> Report {
        let mut rng = Rng::new(self.seed, "who");
        while metrics.newest < 5 {
            pass(ground, metrics, LOOK);
        }
        let mut report = Report::new(self.seed, self.mean.as_secs_f64(), step_s, DEVICE.as_secs_f64());
        let first = metrics.newest;
        let wall = pass(ground, metrics, waits[0]);
        report.quiet(wall.as_secs_f64(), metrics.newest - first);
        for wait in &waits[1..] {
            metrics.longest();
            let before = (metrics.newest, metrics.again);
            let blow = ground.strike(Blow::draw(&mut rng));
            let at_s = report.window_s;
            let wall_s = pass(ground, metrics, *wait).as_secs_f64();
            // Steps that are computed again are new once they are beyond where the training was.
            let steps = metrics.newest.saturating_sub(before.0);
            let (lost_s, longest_s) = (wall_s - steps as f64 * step_s, metrics.longest().as_secs_f64());
            report.steps_again = metrics.again;
            let (what, class) = (blow.to_string(), blow.class());
            report.add(Entry { at_s, what, class, wall_s, steps, lost_s, longest_s });
            tell(&report, metrics.newest);
        }
        report
    }
}

/// Not to be captured: it is told while it goes on.
fn tell(report: &Report, step: u64) {
    let Some(Entry { at_s, what, wall_s, lost_s, longest_s, .. }) = report.story.last() else { return };
    let (failures, effective) = (report.failures, 100.0 * report.effective);
    let cost = format!("of {wall_s:>4.1} s lost {lost_s:>5.1}, standstill {longest_s:>4.1}");
    let _ = writeln!(
        std::io::stderr(),
        "{failures:>4}  {at_s:>7.1} s  {what:<44} {cost}  step {step:>6}  effective {effective:.1} %"
    );
}

/// Equal ranks whenever a step is taken; everything may be lost at once, so that there are checkpoints.
fn recipe(steps: u64) -> Recipe {
    Recipe {
        steps,
        global_batch: 12,
        chunk: 4,
        every_steps: 100,
        max_failures: u32::MAX,
        elastic: format!("min_ranks = {MACHINES}\nmax_ranks = {MACHINES}\ngrace_s = 0"),
        // Failures come as they come: several of them may fall between two steps.
        faults: "max_no_progress = 1000".to_owned(),
        ..Recipe::default()
    }
}

fn launch(ground: &Ground<'_>, job: &Job) -> String {
    let launched = ground.json(&["launch", job.recipe().to_str().unwrap(), "--ranks", &MACHINES.to_string()]);
    launched["job"].as_str().unwrap_or_else(|| panic!("not launched: {launched}")).to_owned()
}

/// Seconds of a step of this training in this cluster while nothing fails.
fn undisturbed_step(ground: &Ground<'_>, job: &Job) -> f64 {
    let id = launch(ground, job);
    let mut metrics = Metrics::of(job.output().join("clip").join("metrics.jsonl"));
    let mut wait_for = |step: u64| {
        let began = Instant::now();
        while metrics.newest < step {
            assert!(began.elapsed() < STANDSTILL, "no step {step}; see {:?}", job.folder());
            std::thread::park_timeout(LOOK);
            metrics.look();
        }
        (Instant::now(), metrics.newest)
    };
    let (from, to) = (wait_for(TRY.1), wait_for(TRY.0));
    ground.llm2clip(&["events", &id, "--follow"]);
    (to.0 - from.0).as_secs_f64() / (to.1 - from.1) as f64
}

/// Lets so much time go by; how much it was.
fn pass(ground: &mut Ground<'_>, metrics: &mut Metrics, wait: Duration) -> Duration {
    let began = Instant::now();
    loop {
        ground.tend();
        metrics.look();
        let still = metrics.since.elapsed();
        assert!(still < STANDSTILL, "no new step after {} for {still:?}", metrics.newest);
        match wait.checked_sub(began.elapsed()) {
            Some(left) => std::thread::park_timeout(left.min(LOOK)),
            None => return began.elapsed(),
        }
    }
}

/// Waits for the job's end, which is a good one, while everything runs again.
fn finish(ground: &mut Ground<'_>, metrics: &mut Metrics, id: &str, folder: &Path) {
    loop {
        pass(ground, metrics, Duration::from_secs(1));
        let status = ground.json(&["status", id]);
        let phase = status["phase"]["phase"].as_str().unwrap_or_default().to_owned();
        if phase == "succeeded" {
            return keep(folder, "events.txt", &ground.llm2clip(&["events", id]));
        }
        assert!(!["failed", "cancelled"].contains(&phase.as_str()), "{status}");
    }
}

/// Every step was taken once, and its loss is that of an undisturbed training in every bit.
fn compare(job: &Job, recipe: &Recipe, report: &Report) {
    let found = losses(&job.steps());
    // A device's time is none of the losses' business.
    let undisturbed = Job::new(&Recipe { elastic: String::new(), ..recipe.clone() });
    eprintln!("an undisturbed training of {} steps, for its losses", recipe.steps);
    let ranks = MACHINES.to_string();
    let run = ["run", undisturbed.recipe().to_str().unwrap(), "--workers", &ranks, "--cores", &ranks];
    let output = undisturbed.llm2clip(&run);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expected = losses(&undisturbed.steps());
    assert_eq!(expected.len() as u64, recipe.steps);
    for (step, loss) in &found {
        assert_eq!(loss.to_bits(), expected[step].to_bits(), "step {step}: {loss}, not {}", expected[step]);
    }
    // Rank 0 writes them: with it goes the line of a step that it took and had not written.
    let (missing, struck) = (recipe.steps - found.len() as u64, u64::from(report.failures));
    eprintln!("{} losses equal in every bit, {missing} lines of rank 0's lost with it", found.len());
    assert!(missing <= struck, "{missing} steps are missing in the metrics");
    assert!(found.contains_key(&recipe.steps), "the last step is missing");
}
