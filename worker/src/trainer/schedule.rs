//! The learning rate as a function of the step alone.

/// Linear warm-up over `warmup` steps, then a cosine from `peak` to 0 at `total` (open_clip's `cosine_lr`). `step` counts
/// from 0: how many updates were made before.
pub fn learning_rate(step: u64, total: u64, warmup: u64, peak: f64) -> f64 {
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    let done = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()) * peak
}

#[cfg(test)]
mod tests {
    use super::learning_rate;

    #[test]
    fn it_warms_up_to_the_peak_and_falls_as_a_cosine() {
        // lr·(t+1)/10 in warm-up, then lr/2·(1 + cos(π(t−10)/90)).
        for (step, expected) in [(0, 1e-4), (9, 1e-3), (10, 1e-3), (55, 5e-4), (99, 3.045_865e-7)] {
            let found = learning_rate(step, 100, 10, 1e-3);
            assert!((found - expected).abs() < 1e-9, "step {step}: {found}");
        }
        assert_eq!(learning_rate(0, 10, 0, 1.0), 1.0);
        assert!(learning_rate(10, 10, 0, 1.0).abs() < 1e-15);
    }
}
