//! Where the time of a step goes: by the host's clock on a CPU, by the device's own events on a GPU, where the host is far
//! ahead of what is computed.

use crate::torch::stream::{Event, Stream};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use tch::{Device, TchError};

/// A part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Section {
    /// Waiting for the loader.
    DataWait,
    /// Forward passes before the loss.
    Encode,
    /// All-gathers of embeddings and statistics.
    Gather,
    /// The loss and its gradients.
    Loss,
    /// Backward passes, with their forward passes if there are several chunks.
    Backward,
    /// Reduction of gradients, as far as no backward pass hides it.
    Reduce,
    /// Clipping and AdamW; with a sharded optimizer the gathering of parameters too.
    Optimizer,
}

impl Section {
    /// All, in the order in which a step goes through them.
    pub const ALL: [Self; 7] =
        [Self::DataWait, Self::Encode, Self::Gather, Self::Loss, Self::Backward, Self::Reduce, Self::Optimizer];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::DataWait => "data wait",
            Self::Encode => "encode",
            Self::Gather => "gather",
            Self::Loss => "loss",
            Self::Backward => "backward",
            Self::Reduce => "reduce",
            Self::Optimizer => "optimizer",
        }
    }
}

/// How long the parts of a step took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepTimes([Duration; Section::ALL.len()]);

impl StepTimes {
    /// One part.
    pub fn of(&self, section: Section) -> Duration {
        self.0[section as usize]
    }

    /// More of a part.
    pub fn add(&mut self, section: Section, length: Duration) {
        self.0[section as usize] += length;
    }

    /// What this rank computed and loaded itself: all but the waits for others.
    pub fn own(&self) -> Duration {
        self.0.iter().sum::<Duration>().saturating_sub(self.exposed_communication())
    }

    /// Communication that no computation hides.
    pub fn exposed_communication(&self) -> Duration {
        self.of(Section::Gather) + self.of(Section::Reduce)
    }
}

/// One uninterrupted stretch of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Which part.
    pub section: Section,
    /// When it began, from the timeline's start.
    pub start: Duration,
    /// How long it took.
    pub length: Duration,
}

/// When the host came by, and the device.
#[derive(Debug)]
struct Point {
    host: Instant,
    device: Option<Event>,
}

impl Point {
    fn now(device: Device) -> Self {
        let event = match device {
            // Without an event the host's clock is the next best.
            Device::Cuda(number) => Stream::current(number).and_then(|stream| Event::record_timed(&stream)).ok(),
            _ => None,
        };
        Self { host: Instant::now(), device: event }
    }

    fn since(&self, start: &Self) -> Result<Duration, TchError> {
        match (&start.device, &self.device) {
            (Some(start), Some(end)) => end.since(start),
            _ => Ok(self.host.duration_since(start.host)),
        }
    }
}

/// The sections of a step as they pass.
#[derive(Debug)]
pub struct Timeline {
    device: Device,
    start: Point,
    laps: Vec<(Section, Point)>,
}

impl Timeline {
    /// Begins now, on the line of work that torch puts this thread's calls on.
    pub fn begin(device: Device) -> Self {
        Self { device, start: Point::now(device), laps: Vec::with_capacity(12) }
    }

    /// What was done since the last lap was of this section.
    pub fn lap(&mut self, section: Section) {
        self.laps.push((section, Point::now(self.device)));
    }

    /// How long after another timeline this one began: by the device's clock where there is one.
    ///
    /// # Errors
    /// When the device has not passed both beginnings.
    pub fn began_after(&self, earlier: &Self) -> Result<Duration, TchError> {
        self.start.since(&earlier.start)
    }

    /// The sections' stretches. Call it when the device has passed the last lap.
    ///
    /// # Errors
    /// When it has not.
    pub fn spans(&self) -> Result<Vec<Span>, TchError> {
        let mut start = Duration::ZERO;
        let span = |(section, point): &(Section, Point)| {
            let end = point.since(&self.start)?;
            let begun = std::mem::replace(&mut start, end);
            Ok(Span { section: *section, start: begun, length: end.saturating_sub(begun) })
        };
        self.laps.iter().map(span).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_follow_each_other_and_add_up_to_the_whole() {
        let mut timeline = Timeline::begin(Device::Cpu);
        for section in [Section::Encode, Section::Gather, Section::Loss, Section::Gather, Section::Backward] {
            timeline.lap(section);
        }
        let whole = timeline.laps.last().unwrap().1.host.duration_since(timeline.start.host);
        let spans = timeline.spans().unwrap();
        let mut times = StepTimes::default();
        let mut end = Duration::ZERO;
        for span in &spans {
            assert_eq!(span.start, end);
            end += span.length;
            times.add(span.section, span.length);
        }
        assert_eq!(end, whole);
        assert_eq!(times.of(Section::Gather), spans[1].length + spans[3].length);
        assert_eq!(times.exposed_communication(), times.of(Section::Gather));
        assert_eq!(times.own(), whole - times.of(Section::Gather));
        assert!(Section::ALL.iter().enumerate().all(|(place, section)| *section as usize == place));
    }
}
