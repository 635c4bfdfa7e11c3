//! The weights of a resampling pass: Pillow's bicubic (a = -0.5), widened where an image shrinks.

use std::ops::Range;

/// Fractional bits of fixed-point weights: 32 less 8 of the value and 2 for sums outside of a byte's range.
pub const FRACTION: u32 = 22;

/// For each output of a pass, where its inputs begin and what they weigh.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Taps {
    first: Vec<u32>,
    count: Vec<u32>,
    /// The most inputs of an output.
    width: usize,
    exact: Vec<f64>,
    fixed: Vec<i32>,
}

/// One dimension of a resize: `inputs` samples become `outputs`, of which those in `window` are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Axis {
    /// Samples before.
    pub inputs: u32,
    /// Samples after.
    pub outputs: u32,
    /// The outputs that are wanted; not empty.
    pub window: Range<u32>,
}

impl Axis {
    /// A pass that Pillow leaves out.
    pub fn is_identity(&self) -> bool {
        self.inputs == self.outputs
    }

    fn scale(&self) -> f64 {
        f64::from(self.inputs) / f64::from(self.outputs)
    }

    /// The inputs of an output, and the centre of its kernel.
    fn reach(&self, output: u32) -> (Range<u32>, f64) {
        let scale = self.scale();
        let support = 2.0 * scale.max(1.0);
        let centre = (f64::from(output) + 0.5) * scale;
        // A cast to an integer cuts towards zero and stops at the type's ends, as Pillow's cast and its clamp do.
        let first = (centre - support + 0.5) as u32;
        let end = ((centre + support + 0.5) as u32).min(self.inputs);
        (first..end, centre)
    }

    /// The wanted outputs as a stretch of the inputs that are needed: where it begins, and its length.
    pub fn span(&self) -> (f64, f64) {
        let needed = self.needed();
        let start = f64::from(self.window.start) * self.scale() - f64::from(needed.start);
        // All outputs together may come out longer than the inputs by a rounding.
        (start, (self.window.len() as f64 * self.scale()).min(needed.len() as f64 - start))
    }

    /// The inputs that the wanted outputs depend on.
    pub fn needed(&self) -> Range<u32> {
        if self.is_identity() {
            return self.window.clone();
        }
        self.reach(self.window.start).0.start..self.reach(self.window.end - 1).0.end
    }
}

impl Taps {
    /// Computes the weights of an axis. Inputs are numbered from the first that is needed.
    pub fn compute(&mut self, axis: &Axis) {
        let origin = axis.needed().start;
        self.first.clear();
        self.count.clear();
        self.exact.clear();
        self.fixed.clear();
        if axis.is_identity() {
            // One input of the weight one gives the input back, exactly.
            self.width = 1;
            self.first.extend(0..axis.window.len() as u32);
            self.count.resize(axis.window.len(), 1);
            self.exact.resize(axis.window.len(), 1.0);
            self.fixed.resize(axis.window.len(), 1 << FRACTION);
            return;
        }
        let stretch = axis.scale().max(1.0);
        self.width = (2.0 * stretch).ceil() as usize * 2 + 1;
        self.exact.resize(axis.window.len() * self.width, 0.0);
        let narrow = 1.0 / stretch;
        for (output, weights) in axis.window.clone().zip(self.exact.chunks_exact_mut(self.width)) {
            let (inputs, centre) = axis.reach(output);
            let mut sum = 0.0;
            for (weight, input) in weights.iter_mut().zip(inputs.clone()) {
                *weight = bicubic((f64::from(input) - centre + 0.5) * narrow);
                sum += *weight;
            }
            if sum != 0.0 {
                weights[..inputs.len()].iter_mut().for_each(|weight| *weight /= sum);
            }
            self.first.push(inputs.start - origin);
            self.count.push(inputs.len() as u32);
        }
        let one = f64::from(1 << FRACTION);
        self.fixed.extend(self.exact.iter().map(|weight| (weight * one + 0.5f64.copysign(*weight)) as i32));
    }

    /// How many outputs there are.
    pub fn len(&self) -> usize {
        self.first.len()
    }

    /// An output's first input and its weights with [`FRACTION`] fractional bits.
    #[inline(always)]
    pub fn fixed(&self, output: usize) -> (usize, &[i32]) {
        let start = output * self.width;
        (self.first[output] as usize, &self.fixed[start..start + self.count[output] as usize])
    }

    /// An output's first input and its weights.
    pub fn exact(&self, output: usize) -> (usize, &[f64]) {
        let start = output * self.width;
        (self.first[output] as usize, &self.exact[start..start + self.count[output] as usize])
    }
}

fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}
