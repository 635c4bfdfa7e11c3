//! Optimizer steps one after the other, timed as in training: one is read while the next is computed.

use super::median;
use crate::{
    torch::memory,
    trainer::{
        step::{LossSettings, StepBegun, StepOutput, StepSettings},
        timeline::Section,
    },
};
use serde_json::{Value, json};
use tch::Device;

/// Measured steps, without those before them.
pub(super) struct Steps {
    seconds: Vec<f64>,
    outputs: Vec<StepOutput>,
}

/// The settings of a step, from 1.
pub(super) fn settings(step: u64) -> StepSettings {
    StepSettings {
        step,
        learning_rate: 1e-3,
        betas: (0.9, 0.98),
        eps: 1e-6,
        clip_norm: None,
        skip_nonfinite: false,
        loss: LossSettings::default(),
    }
}

impl Steps {
    /// Does so many steps to warm up, and so many that are measured; from there on the peak of memory is anew.
    pub(super) fn measure(
        (warmup, repeats): (usize, usize),
        device: Device,
        mut begin: impl FnMut(u64) -> anyhow::Result<StepBegun>,
    ) -> anyhow::Result<Self> {
        let mut outputs: Vec<StepOutput> = Vec::new();
        let mut begun: Option<StepBegun> = None;
        let all = warmup + repeats;
        for step in 0..=all {
            if step == warmup {
                memory::reset_peak(device);
            }
            let next = (step < all).then(|| begin(step as u64 + 1)).transpose()?;
            if let Some(before) = std::mem::replace(&mut begun, next) {
                outputs.push(before.wait()?);
            }
        }
        let mut seconds = vec![outputs[0].length().as_secs_f64()];
        for (before, step) in outputs.iter().zip(&outputs[1..]) {
            seconds.push(step.ended_after(before)?.as_secs_f64());
        }
        Ok(Self { seconds: seconds.split_off(warmup), outputs: outputs.split_off(warmup) })
    }

    /// Seconds of a step.
    pub(super) fn median_s(&self) -> f64 {
        median(&self.seconds)
    }

    /// Adds the seconds of each part of a step.
    pub(super) fn add_sections(&self, figures: &mut Value) {
        let part = |section: Section| {
            median(&self.outputs.iter().map(|output| output.times.of(section).as_secs_f64()).collect::<Vec<_>>())
        };
        for (name, section) in [
            ("encode_s", Section::Encode),
            ("gather_s", Section::Gather),
            ("loss_s", Section::Loss),
            ("backward_s", Section::Backward),
            ("reduce_s", Section::Reduce),
            ("optimizer_s", Section::Optimizer),
        ] {
            figures[name] = json!(part(section));
        }
    }
}
