//! Pillow's nearest pixel, by which it resizes palettes and single bits whatever filter is asked for.

use super::taps::Axis;

/// The input of each wanted output, from the first input that is needed. Pillow adds the step up, rounding included.
pub fn nearest(axis: &Axis) -> Vec<usize> {
    let step = f64::from(axis.inputs) / f64::from(axis.outputs);
    let mut at = step * 0.5;
    let origin = axis.needed().start as usize;
    let mut inputs = Vec::with_capacity(axis.window.len());
    for output in 0..axis.window.end {
        if output >= axis.window.start {
            inputs.push((at as usize).min(axis.inputs as usize - 1) - origin);
        }
        at += step;
    }
    inputs
}
