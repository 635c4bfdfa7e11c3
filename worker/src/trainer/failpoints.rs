//! Faults on purpose, so that scenarios can see what a fault does: `LLM2CLIP_FAILPOINTS="clip.step=panic@5"` in a trainer's
//! environment. Without the variable nothing is ever hit.
//!
//! `POINT=ACTION@NUMBER`, several parted by commas; `…@NUMBER/RANK` on one rank alone, `…@NUMBER/RANK/GENERATION` in one
//! membership alone. Points: `mntp.step`, `contrast.step`, `distill.step`, `clip.step` before the optimizer step of that number, from
//! 1; `collective` at the call of that number in the membership, from 0; `start` in a process that was started for the membership of
//! that number and knows no rank yet; [`load`](Point::Load), [`forward`](Point::Forward), [`all-gather`](Point::AllGather),
//! [`all-reduce`](Point::AllReduce) and [`optimizer`](Point::Optimizer) when the membership comes by for that time, from 1.
//! Actions: see [`Action`].

use common::ids::{Generation, Rank};
use rustix::process::{Signal, getpid, kill_process};
use std::{
    collections::BTreeMap,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tch::{Device, Kind, Tensor};

/// The environment variable that arms them.
pub const VARIABLE: &str = "LLM2CLIP_FAILPOINTS";
/// `hog` takes no more than this: a machine without a limit is not brought down.
const MOST_BYTES: i64 = 6 << 30;

/// Where a trainer can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// `mntp.step`.
    MntpStep,
    /// `contrast.step`.
    ContrastStep,
    /// `distill.step`.
    DistillStep,
    /// `clip.step`.
    ClipStep,
    /// `collective`.
    Collective,
    /// `start`: the process has begun, and done nothing yet.
    Start,
    /// `load`: the data are open and the model is built, as it begins; the state of the training is not in it yet.
    Load,
    /// `forward`: `clip` took a chunk through the towers, and has not used what came of it.
    Forward,
    /// `all-gather`: the peers come together in one, or wait for this rank there.
    AllGather,
    /// `all-reduce`: the same.
    AllReduce,
    /// `optimizer`: the gradients are summed, and no parameter is updated yet. The peers go on to update theirs.
    Optimizer,
}

impl Point {
    /// Before an optimizer step of a stage that trains.
    pub fn step(stage: &str) -> Option<Self> {
        match stage {
            "mntp" => Some(Self::MntpStep),
            "contrast" => Some(Self::ContrastStep),
            "distill" => Some(Self::DistillStep),
            "clip" => Some(Self::ClipStep),
            _ => None,
        }
    }

    fn named(name: &str) -> Option<Self> {
        match name {
            "collective" => Some(Self::Collective),
            "start" => Some(Self::Start),
            "load" => Some(Self::Load),
            "forward" => Some(Self::Forward),
            "all-gather" => Some(Self::AllGather),
            "all-reduce" => Some(Self::AllReduce),
            "optimizer" => Some(Self::Optimizer),
            _ => Self::step(name.strip_suffix(".step")?),
        }
    }

    /// Whether a caller there does what is asked of it.
    fn obeys(self) -> bool {
        !matches!(self, Self::Start | Self::Load | Self::Forward | Self::AllGather | Self::AllReduce | Self::Optimizer)
    }
}

/// What happens there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// `panic`: a Rust panic.
    Panic,
    /// `kill`: SIGKILL, sent to itself.
    Kill,
    /// `stop`: SIGSTOP, sent to itself.
    Stop,
    /// `hang`: the thread waits for ever.
    Hang,
    /// `hog`: it takes memory until it gets no more.
    Hog,
    /// `slow:MILLISECONDS`: it takes longer by so much, from that number on.
    Slow(Duration),
    /// What the caller is to do.
    Ask(Fault),
}

/// A fault that the caller brings about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `poison`: its share of the step's batch becomes NaN.
    Poison,
    /// `flip`: one bit of the parameters is another.
    Flip,
    /// `skip`: the call is left out.
    Skip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Failpoint {
    point: Point,
    action: Action,
    at: u64,
    rank: Option<Rank>,
    generation: Option<Generation>,
}

impl Failpoint {
    fn is_at(&self, number: u64) -> bool {
        if matches!(self.action, Action::Slow(_)) { number >= self.at } else { number == self.at }
    }
}

/// The faults that this process was told to have.
#[derive(Debug, Clone, Default)]
pub struct Failpoints {
    armed: Vec<Failpoint>,
    /// How often the membership came by. Clones count together.
    passed: Arc<Mutex<BTreeMap<Point, u64>>>,
}

impl Failpoints {
    /// Those of one rank of one membership, which has come by nothing yet.
    pub fn of(&self, rank: Rank, generation: Generation) -> Self {
        let mine = |failpoint: &&Failpoint| {
            failpoint.rank.is_none_or(|of| of == rank) && failpoint.generation.is_none_or(|of| of == generation)
        };
        Self { armed: self.armed.iter().filter(mine).copied().collect(), passed: Arc::default() }
    }

    /// Comes by a point that counts how often: does what was asked for at this time, if anything was.
    ///
    /// # Panics
    /// When that is what was asked for.
    pub fn pass(&self, point: Point) {
        if self.armed.is_empty() {
            return;
        }
        let number = {
            let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
            let number = passed.entry(point).or_default();
            *number += 1;
            *number
        };
        // Nothing is left for the caller: such faults are refused at these points.
        let _ = self.hit(point, number);
    }

    /// Does what was asked for at this point, if anything was; returns what is left for the caller to do.
    ///
    /// # Panics
    /// When that is what was asked for.
    pub fn hit(&self, point: Point, number: u64) -> Option<Fault> {
        let failpoint = self.armed.iter().find(|failpoint| failpoint.point == point && failpoint.is_at(number))?;
        let signal = |signal| {
            // It cannot fail: a process may signal itself.
            let _ = kill_process(getpid(), signal);
        };
        match failpoint.action {
            Action::Ask(fault) => return Some(fault),
            Action::Panic => panic!("{VARIABLE} asks for a panic at {point:?} {number}"),
            Action::Kill => signal(Signal::KILL),
            Action::Stop => signal(Signal::STOP),
            Action::Hang => loop {
                std::thread::park();
            },
            Action::Hog => hog(),
            Action::Slow(by) => {
                let end = Instant::now() + by;
                while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                    std::thread::park_timeout(left);
                }
            }
        }
        None
    }
}

fn hog() {
    let mut taken = Vec::new();
    let one = 64 << 20;
    while taken.len() as i64 * one < MOST_BYTES {
        taken.push(Tensor::ones([one], (Kind::Uint8, Device::Cpu)));
    }
    panic!("{VARIABLE} asks to run out of memory, and {MOST_BYTES} bytes did not do it");
}

impl FromStr for Failpoints {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let all = parts.map(|part| {
            one(part).ok_or_else(|| format!("{VARIABLE}: `{part}` is no failpoint, such as clip.step=panic@5"))
        });
        Ok(Self { armed: all.collect::<Result<_, _>>()?, passed: Arc::default() })
    }
}

fn one(text: &str) -> Option<Failpoint> {
    let (point, what) = text.split_once('=')?;
    let (action, place) = what.split_once('@')?;
    let action = match action {
        "panic" => Action::Panic,
        "kill" => Action::Kill,
        "stop" => Action::Stop,
        "hang" => Action::Hang,
        "hog" => Action::Hog,
        "poison" => Action::Ask(Fault::Poison),
        "flip" => Action::Ask(Fault::Flip),
        "skip" => Action::Ask(Fault::Skip),
        _ => Action::Slow(Duration::from_millis(action.strip_prefix("slow:")?.parse().ok()?)),
    };
    let mut place = place.split('/');
    let at = place.next()?.parse().ok()?;
    let rank = place.next().map(|rank| rank.parse().map(Rank)).transpose().ok()?;
    let generation = place.next().map(|generation| generation.parse().map(Generation)).transpose().ok()?;
    let failpoint = Failpoint { point: Point::named(point)?, action, at, rank, generation };
    let asks = matches!(action, Action::Ask(_)) && !failpoint.point.obeys();
    // Its number is the membership, and there is no rank yet.
    let too_early = failpoint.point == Point::Start && rank.is_some();
    (place.next().is_none() && !asks && !too_early).then_some(failpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failpoint_is_hit_where_it_says_and_nowhere_else() {
        let failpoints: Failpoints = "clip.step=panic@5".parse().unwrap();
        assert_eq!(failpoints.hit(Point::ClipStep, 4), None);
        assert_eq!(Failpoints::default().hit(Point::ClipStep, 5), None);
        let poison: Failpoints = "clip.step=poison@3, clip.step=poison@4".parse().unwrap();
        let poisoned = [2, 3, 4, 5].map(|step| poison.hit(Point::ClipStep, step).is_some());
        assert_eq!(poisoned, [false, true, true, false]);
        assert!(std::panic::catch_unwind(|| failpoints.hit(Point::ClipStep, 5)).is_err());
    }

    #[test]
    fn one_of_a_rank_or_a_membership_is_nobody_elses() {
        let failpoints: Failpoints = "collective=skip@7/1/2,clip.step=flip@3/0".parse().unwrap();
        let of = |rank, generation| {
            let mine = failpoints.of(Rank(rank), Generation(generation));
            (mine.hit(Point::Collective, 7), mine.hit(Point::ClipStep, 3))
        };
        assert_eq!(of(1, 2), (Some(Fault::Skip), None));
        assert_eq!(of(1, 3), (None, None));
        assert_eq!(of(0, 2), (None, Some(Fault::Flip)));
        let slow: Failpoints = "clip.step=slow:5@4".parse().unwrap();
        let began = Instant::now();
        slow.hit(Point::ClipStep, 3);
        let _ = [4, 9].map(|step| slow.hit(Point::ClipStep, step));
        assert!(began.elapsed() >= Duration::from_millis(10));
    }

    #[test]
    fn what_counts_by_the_membership_begins_anew_with_the_next_one() {
        let failpoints: Failpoints = "optimizer=panic@2, start=panic@3".parse().unwrap();
        let panics = |of: &Failpoints, point| std::panic::catch_unwind(|| of.pass(point)).is_err();
        for generation in 1..3 {
            let mine = failpoints.of(Rank(0), Generation(generation));
            let clone = mine.clone();
            let found = [panics(&mine, Point::Optimizer), panics(&mine, Point::Load), panics(&clone, Point::Optimizer)];
            assert_eq!(found, [false, false, true]);
        }
        assert_eq!(failpoints.hit(Point::Start, 2), None);
        assert!(std::panic::catch_unwind(|| failpoints.hit(Point::Start, 3)).is_err());
    }

    #[test]
    fn what_is_none_is_named() {
        let wrong = ["clip.step", "clip.step=panic", "clip.step=panic@x", "nowhere=panic@5", "clip.step=dance@5"];
        for wrong in wrong.into_iter().chain([
            "clip=panic@5",
            "clip.step=slow@5",
            "clip.step=kill@5/x",
            "collective=skip@1/2/3/4",
            "all-reduce=skip@1",
            "start=kill@2/0",
        ]) {
            let error = wrong.parse::<Failpoints>().unwrap_err();
            assert!(error.contains(wrong) && error.contains(VARIABLE), "{error}");
        }
    }
}
