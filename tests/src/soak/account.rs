//! What failures cost.

use serde::Serialize;
use std::{collections::BTreeMap, fmt};

/// From one failure to the next.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Entry {
    /// Seconds since the first interval began.
    pub(super) at_s: f64,
    /// Who, and how.
    pub(super) what: String,
    #[serde(skip)]
    pub(super) class: String,
    /// Seconds until the next failure.
    pub(super) wall_s: f64,
    /// Steps taken in that time.
    pub(super) steps: u64,
    /// Seconds of that time in which no step was taken that an undisturbed training would have taken.
    pub(super) lost_s: f64,
    /// The longest time without a new step.
    pub(super) longest_s: f64,
}

/// What one kind of failure cost, the next one not having come yet.
#[derive(Debug, Default, Serialize)]
struct Class {
    count: u64,
    lost_s: f64,
    longest_s: f64,
}

/// What a soak is measured by.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) schema: u32,
    pub(super) seed: u64,
    pub(super) failures: u32,
    pub(super) mean_s: f64,
    /// Seconds of an undisturbed step in this cluster, and of these the pause that stands for a device.
    pub(super) step_s: f64,
    pub(super) device_s: f64,
    /// Seconds from the first interval's beginning to the last one's end.
    pub(super) window_s: f64,
    /// New steps in that time.
    pub(super) steps: u64,
    /// steps × step_s / window_s.
    pub(super) effective: f64,
    /// Steps that were computed a second time, as no rank held the state.
    pub(super) steps_again: u64,
    /// Daemons that ended although nobody killed them.
    pub(super) own_ends: u64,
    victims: BTreeMap<String, Class>,
    /// Every failure, in order.
    pub(super) story: Vec<Entry>,
}

impl Report {
    pub(super) fn new(seed: u64, mean_s: f64, step_s: f64, device_s: f64) -> Self {
        Self {
            schema: 1,
            seed,
            failures: 0,
            mean_s,
            step_s,
            device_s,
            window_s: 0.0,
            steps: 0,
            effective: 1.0,
            steps_again: 0,
            own_ends: 0,
            victims: BTreeMap::new(),
            story: Vec::new(),
        }
    }

    /// An interval in which nothing was struck yet.
    pub(super) fn quiet(&mut self, wall_s: f64, steps: u64) {
        self.window_s += wall_s;
        self.steps += steps;
        self.effective = self.steps as f64 * self.step_s / self.window_s;
    }

    /// A failure, and the interval behind it.
    pub(super) fn add(&mut self, entry: Entry) {
        self.quiet(entry.wall_s, entry.steps);
        self.failures += 1;
        let class = self.victims.entry(entry.class.clone()).or_default();
        class.count += 1;
        class.lost_s += entry.lost_s;
        class.longest_s = class.longest_s.max(entry.longest_s);
        self.story.push(entry);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, failures, mean_s, step_s, device_s, window_s, steps, .. } = self;
        writeln!(f, "{failures} failures, {mean_s:.0} s apart on average, seed {seed}")?;
        writeln!(
            f,
            "  {:<18} {:>5} {:>10} {:>10} {:>22}",
            "victim", "count", "lost, s", "each, s", "longest standstill, s"
        )?;
        for (class, Class { count, lost_s, longest_s }) in &self.victims {
            let each = lost_s / *count as f64;
            writeln!(f, "  {class:<18} {count:>5} {lost_s:>10.1} {each:>10.2} {longest_s:>22.1}")?;
        }
        writeln!(f, "  an undisturbed step takes {step_s:.3} s, {device_s:.1} s of it in place of a device")?;
        writeln!(
            f,
            "  steps computed twice: {}; daemons that ended by themselves: {}",
            self.steps_again, self.own_ends
        )?;
        write!(
            f,
            "  effective training time {:.1} %: {steps} steps of {step_s:.3} s in {window_s:.0} s",
            100.0 * self.effective
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_of_the_whole_window_and_costs_are_by_victim() {
        let mut report = Report::new(1, 10.0, 0.25, 0.2);
        report.quiet(10.0, 40);
        let entry = |class: &str, steps, lost_s| Entry {
            at_s: 10.0,
            what: String::new(),
            class: class.to_owned(),
            wall_s: 10.0,
            steps,
            lost_s,
            longest_s: lost_s,
        };
        report.add(entry("kill trainer", 36, 1.0));
        report.add(entry("kill trainer", 32, 2.0));
        report.add(entry("kill etcd", 40, 0.0));
        assert_eq!((report.failures, report.steps), (3, 148));
        assert!((report.effective - 0.925).abs() < 1e-9, "{}", report.effective);
        let class = &report.victims["kill trainer"];
        assert_eq!((class.count, class.lost_s, class.longest_s), (2, 3.0, 2.0));
        assert!(report.to_string().contains("effective training time 92.5 %"));
    }
}
