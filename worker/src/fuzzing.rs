//! What fuzz tests share: numbers that look random, and a bounded time. `LLM2CLIP_FUZZ_SECONDS` says how long each target
//! runs, `LLM2CLIP_FUZZ_SEED` repeats a failure.

use std::time::{Duration, Instant};

/// How long each target runs unless the environment says otherwise.
const SECONDS: f64 = 1.0;

/// Numbers that look random (splitmix64).
pub struct Draws(pub u64);

impl Draws {
    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 when there is none.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Runs `one` on draws of its own until the time is over; the seed of a failure is printed.
pub fn for_a_while(one: impl Fn(&mut Draws)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<f64>().ok());
    if let Some(seed) = number("LLM2CLIP_FUZZ_SEED") {
        return one(&mut Draws(seed as u64));
    }
    let until = Instant::now() + Duration::from_secs_f64(number("LLM2CLIP_FUZZ_SECONDS").unwrap_or(SECONDS));
    let mut seed = 0;
    while Instant::now() < until {
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| one(&mut Draws(seed))));
        if let Err(panic) = run {
            eprintln!("LLM2CLIP_FUZZ_SEED={seed} repeats it");
            std::panic::resume_unwind(panic);
        }
        seed += 1;
    }
    eprintln!("{seed} inputs");
}
