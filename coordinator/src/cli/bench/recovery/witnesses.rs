//! What others saw of a trainer's death: its daemon and its peers, whose logs say when.

use jiff::Timestamp;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The logs of a job on this machine.
pub(super) struct Witnesses(PathBuf);

impl Witnesses {
    /// Those in a folder.
    pub(super) fn new(logs: PathBuf) -> Self {
        Self(logs)
    }

    /// How many seconds after `killed` its daemon saw the end of a process; absent while it has not.
    pub(super) fn seen(&self, pid: u32, killed: Timestamp) -> Option<f64> {
        let pid = format!("pid={pid} ");
        let ended = |line: &&str| line.contains("a trainer ended") && line.contains(&pid);
        let text = self.texts("worker-").into_iter();
        let times = text.flat_map(|text| text.lines().filter(ended).filter_map(at).collect::<Vec<_>>());
        times.map(|time| seconds(killed, time)).find(|seconds| *seconds >= 0.0)
    }

    /// How many seconds after `killed` the last of its peers had left what it waited for it in; absent when none waited.
    pub(super) fn released(&self, killed: Timestamp) -> Option<f64> {
        let over = |line: &&str| line.contains("the membership is over");
        let text = self.texts("trainer-").into_iter();
        let times = text.flat_map(|text| text.lines().filter(over).filter_map(at).collect::<Vec<_>>());
        times.map(|time| seconds(killed, time)).filter(|seconds| *seconds >= 0.0).max_by(f64::total_cmp)
    }

    /// The step after which the ranks went on after `killed`, from what one of them held; absent while they have not.
    pub(super) fn went_on(&self, killed: Timestamp) -> Option<u64> {
        let later = |line: &&str| {
            line.contains("goes on from what a rank holds in memory") && at(line).is_some_and(|time| time >= killed)
        };
        let step = |line: &str| line.split_ascii_whitespace().find_map(|word| word.strip_prefix("step=")?.parse().ok());
        let text = self.texts("trainer-").into_iter();
        text.flat_map(|text| text.lines().filter(later).filter_map(step).collect::<Vec<u64>>()).max()
    }

    fn texts(&self, prefix: &str) -> Vec<String> {
        let named = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        let paths = fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path());
        paths.filter(|path| named(path)).filter_map(|path| fs::read_to_string(path).ok()).collect()
    }
}

/// When a line was logged: it begins with that.
fn at(line: &str) -> Option<Timestamp> {
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logs_say_when_a_death_was_seen_and_when_peers_left() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let second = |second: &str| format!("2026-11-28T10:00:{second}Z");
        let seen =
            |time: &str, pid: u32| format!("{}  INFO a trainer ended slot=0 pid={pid} exit=Signal(9)\n", second(time));
        let over =
            |time: &str| format!("{}  WARN the membership is over; waits for the next one error=x\n", second(time));
        write("worker-local-0.log", &(seen("01.5", 11) + &seen("03.004", 112)));
        write("trainer-a-0-gen-00001.log", &(over("01.2") + &over("03.25")));
        let on = |time: &str, step: u64| {
            format!("{}  INFO goes on from what a rank holds in memory step={step} holder=1\n", second(time))
        };
        write("trainer-b-0-gen-00001.log", &(on("01.9", 4) + &over("03.5") + &on("03.7", 9)));
        let (witnesses, killed) = (Witnesses::new(folder.path().to_owned()), second("03").parse().unwrap());
        assert_eq!(witnesses.seen(112, killed), Some(0.004));
        assert_eq!(witnesses.seen(12, killed), None);
        assert_eq!(witnesses.released(killed), Some(0.5));
        assert_eq!(witnesses.released(second("04").parse().unwrap()), None);
        assert_eq!(witnesses.went_on(killed), Some(9));
        assert_eq!(witnesses.went_on(second("04").parse().unwrap()), None);
    }
}
