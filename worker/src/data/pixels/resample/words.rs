//! Pillow's bicubic over 16 bits of gray: in f64, columns and rows in turn, with 16 bits in between.

use super::taps::Taps;

/// Resamples one pass of `lines` lines: sample `i` of line `l` stands at `at(l, i)` of `words`; results stand side by
/// side, line after line.
pub fn along(words: &[u16], lines: usize, taps: &Taps, at: impl Fn(usize, usize) -> usize) -> Vec<u16> {
    let mut made = Vec::with_capacity(lines * taps.len());
    for line in 0..lines {
        for output in 0..taps.len() {
            let (first, weights) = taps.exact(output);
            let mut sum = 0.0;
            for (i, weight) in weights.iter().enumerate() {
                sum += f64::from(words[at(line, first + i)]) * weight;
            }
            made.push(stored(sum));
        }
    }
    made
}

/// Rounded half away from zero, and clipped. (Pillows before 12.3 clip the two bytes of the sum one by one.)
fn stored(sum: f64) -> u16 {
    ((sum + 0.5f64.copysign(sum)) as i32).clamp(0, 65_535) as u16
}
