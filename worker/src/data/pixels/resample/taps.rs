//! The weights of a resampling pass: Pillow's bicubic (a = -0.5), widened where an image shrinks.

use std::ops::Range;

/// A fixed-point weight.
pub trait Weight: Copy + Into<i32> {
    /// Its fractional bits.
    const FRACTION: u32;
    /// An output's first input, and what its inputs weigh.
    fn of(taps: &Taps, output: usize) -> (usize, &[Self]);
}

/// Pillow's: 32 bits less 8 of the value and 2 for sums outside of a byte's range.
impl Weight for i32 {
    const FRACTION: u32 = 22;

    #[inline(always)]
    fn of(taps: &Taps, output: usize) -> (usize, &[Self]) {
        taps.stretch(&taps.fixed, output)
    }
}

/// Of 16 bits, so that a processor multiplies twice as many at once; the weight of one must fit.
impl Weight for i16 {
    const FRACTION: u32 = 14;

    #[inline(always)]
    fn of(taps: &Taps, output: usize) -> (usize, &[Self]) {
        taps.stretch(&taps.narrow, output)
    }
}

/// For each output of a pass, where its inputs begin and what they weigh.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Taps {
    first: Vec<u32>,
    count: Vec<u32>,
    /// The most inputs of an output.
    width: usize,
    exact: Vec<f64>,
    fixed: Vec<i32>,
    narrow: Vec<i16>,
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
        self.narrow.clear();
        if axis.is_identity() {
            // One input of the weight one gives the input back, exactly.
            self.width = 1;
            self.first.extend(0..axis.window.len() as u32);
            self.count.resize(axis.window.len(), 1);
            self.exact.resize(axis.window.len(), 1.0);
            self.fixed.resize(axis.window.len(), 1 << i32::FRACTION);
            self.narrow.resize(axis.window.len(), 1 << i16::FRACTION);
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
        let rounded = |weight: &f64, fraction: u32| weight * f64::from(1 << fraction) + 0.5f64.copysign(*weight);
        self.fixed.extend(self.exact.iter().map(|weight| rounded(weight, i32::FRACTION) as i32));
        self.narrow.extend(self.exact.iter().map(|weight| rounded(weight, i16::FRACTION) as i16));
    }

    /// How many outputs there are.
    pub fn len(&self) -> usize {
        self.first.len()
    }

    /// An output's first input and its weights.
    pub fn exact(&self, output: usize) -> (usize, &[f64]) {
        self.stretch(&self.exact, output)
    }

    #[inline(always)]
    fn stretch<'a, T>(&self, weights: &'a [T], output: usize) -> (usize, &'a [T]) {
        let start = output * self.width;
        (self.first[output] as usize, &weights[start..start + self.count[output] as usize])
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
