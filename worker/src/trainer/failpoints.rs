//! Faults on purpose, so that scenarios can see what a fault does: `LLM2CLIP_FAILPOINTS="clip.step=panic@5"` in a trainer's
//! environment, or `kill`, or `poison`, which makes its share of the step's batch NaN. Without the variable nothing is ever hit.

use rustix::process::{Signal, getpid, kill_process};
use std::str::FromStr;

/// The environment variable that arms them.
pub const VARIABLE: &str = "LLM2CLIP_FAILPOINTS";

/// Where a trainer can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// `mntp.step`: before the optimizer step of that number, from 1.
    MntpStep,
    /// `contrast.step`.
    ContrastStep,
    /// `distill.step`.
    DistillStep,
    /// `clip.step`.
    ClipStep,
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
}

/// What happens there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// A Rust panic.
    Panic,
    /// SIGKILL, sent to itself.
    Kill,
    /// The batch becomes one of NaN.
    Poison,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Failpoint {
    point: Point,
    action: Action,
    at: u64,
}

/// The faults that this process was told to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failpoints(Vec<Failpoint>);

impl Failpoints {
    /// Does what was asked for at this point, if anything was. Returns whether the caller is to poison its batch.
    ///
    /// # Panics
    /// When that is what was asked for.
    pub fn hit(&self, point: Point, number: u64) -> bool {
        match self.0.iter().find(|failpoint| failpoint.point == point && failpoint.at == number) {
            Some(Failpoint { action: Action::Poison, .. }) => return true,
            Some(Failpoint { action: Action::Panic, .. }) => {
                panic!("{VARIABLE} asks for a panic at {point:?} {number}")
            }
            Some(Failpoint { action: Action::Kill, .. }) => {
                // It cannot fail: a process may signal itself.
                let _ = kill_process(getpid(), Signal::KILL);
            }
            None => {}
        }
        false
    }
}

impl FromStr for Failpoints {
    type Err = String;

    /// `POINT=ACTION@NUMBER`, several parted by commas.
    fn from_str(text: &str) -> Result<Self, String> {
        let one = |text: &str| {
            let (point, what) = text.split_once('=')?;
            let (action, at) = what.split_once('@')?;
            let point = Point::step(point.strip_suffix(".step")?)?;
            let action = match action {
                "panic" => Action::Panic,
                "kill" => Action::Kill,
                "poison" => Action::Poison,
                _ => return None,
            };
            Some(Failpoint { point, action, at: at.parse().ok()? })
        };
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let all = parts.map(|part| {
            one(part).ok_or_else(|| format!("{VARIABLE}: `{part}` is no failpoint, such as clip.step=panic@5"))
        });
        Ok(Self(all.collect::<Result<_, _>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failpoint_is_hit_where_it_says_and_nowhere_else() {
        let failpoints: Failpoints = "clip.step=panic@5".parse().unwrap();
        assert!(!failpoints.hit(Point::ClipStep, 4) && !Failpoints::default().hit(Point::ClipStep, 5));
        let poison: Failpoints = "clip.step=poison@3, clip.step=poison@4".parse().unwrap();
        assert_eq!([2, 3, 4, 5].map(|step| poison.hit(Point::ClipStep, step)), [false, true, true, false]);
        assert!(std::panic::catch_unwind(|| failpoints.hit(Point::ClipStep, 5)).is_err());
        for wrong in ["clip.step", "clip.step=panic", "clip.step=panic@x", "nowhere=panic@5", "clip.step=dance@5"] {
            let error = wrong.parse::<Failpoints>().unwrap_err();
            assert!(error.contains(wrong) && error.contains(VARIABLE), "{error}");
        }
    }
}
