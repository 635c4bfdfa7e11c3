//! The learning rate as a function of the step alone.

use common::recipe::{Decay, Schedule};

/// Linear warm-up, then a fall from `peak` to 0 at `total`. `step` counts from 0: how many updates were made before. With
/// [`Decay::Linear`] as transformers' `get_linear_schedule_with_warmup`, whose warm-up begins at 0; else as open_clip's
/// `cosine_lr` and `const_lr`.
pub fn learning_rate(step: u64, total: u64, schedule: Schedule, peak: f64) -> f64 {
    let Schedule { warmup_steps: warmup, decay } = schedule;
    if step < warmup {
        let done = if decay == Decay::Linear { step } else { step + 1 };
        return peak * done as f64 / warmup as f64;
    }
    let done = ((step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64).min(1.0);
    match decay {
        Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()) * peak,
        Decay::Linear => (1.0 - done) * peak,
        Decay::Constant => peak,
    }
}

#[cfg(test)]
mod tests {
    use super::{Decay, Schedule, learning_rate};

    fn rate(step: u64, total: u64, warmup_steps: u64, decay: Decay) -> f64 {
        learning_rate(step, total, Schedule { warmup_steps, decay }, 1e-3)
    }

    #[test]
    fn it_warms_up_to_the_peak_and_falls_as_a_cosine() {
        // lr·(t+1)/10 in warm-up, then lr/2·(1 + cos(π(t−10)/90)).
        for (step, expected) in [(0, 1e-4), (9, 1e-3), (10, 1e-3), (55, 5e-4), (99, 3.045_865e-7)] {
            let found = rate(step, 100, 10, Decay::Cosine);
            assert!((found - expected).abs() < 1e-9, "step {step}: {found}");
        }
        assert_eq!(rate(0, 10, 0, Decay::Cosine), 1e-3);
        assert!(rate(10, 10, 0, Decay::Cosine).abs() < 1e-15);
    }

    #[test]
    fn a_line_is_that_of_transformers_and_a_constant_stays() {
        // get_linear_schedule_with_warmup(optimizer, 10, 100): lr_lambda of steps 0, 5, 10, 55, 99.
        for (step, expected) in [(0, 0.0), (5, 5e-4), (10, 1e-3), (55, 5e-4), (99, 1e-3 / 90.0)] {
            let found = rate(step, 100, 10, Decay::Linear);
            assert!((found - expected).abs() < 1e-12, "step {step}: {found}");
        }
        assert_eq!([0, 9, 10, 99].map(|step| rate(step, 100, 10, Decay::Constant)), [1e-4, 1e-3, 1e-3, 1e-3]);
    }
}
