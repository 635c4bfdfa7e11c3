//! What is asked of the loader, and what comes of it.

use super::{broken::BrokenSample, slab::Slab};
use common::{
    ids::{Epoch, SampleIndex, Step},
    sampler::{Draw, Order},
};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// The mean of CLIP's images by channel, of values from 0 to 1.
pub const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Their standard deviation.
pub const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// A sample of one of the loader's data sets, in one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleRequest {
    /// The data set's place in [`super::LoaderConfig::datasets`].
    pub source: u32,
    /// The sample.
    pub index: SampleIndex,
    /// The epoch; with the seed it decides the crop.
    pub epoch: Epoch,
}

/// Samples that are wanted together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRequest {
    /// The caller's own number of it.
    pub tag: u64,
    /// The samples in order.
    pub samples: Vec<SampleRequest>,
}

impl BatchRequest {
    /// What a stretch of a step's slots holds; the tag is the step.
    pub fn of_step(order: &Order, step: Step, slots: Range<u64>) -> Self {
        let sample = |draw: Draw| SampleRequest { source: draw.source as u32, index: draw.index, epoch: draw.epoch };
        Self { tag: step.0, samples: order.draws(step, slots).map(sample).collect() }
    }
}

/// Decoded samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The request's.
    pub tag: u64,
    /// The samples in the order of the request; those in `broken` are replaced or left out, see [`super::OnBroken`].
    pub samples: Vec<SampleRequest>,
    /// Pixels [n, 3, S, S] as bytes.
    pub pixels: Slab,
    /// The side S of the images.
    pub image_size: u32,
    /// Samples that are broken, in the order of the request.
    pub broken: Vec<BrokenSample>,
}

impl Batch {
    /// The pixels' shape: [n, 3, S, S].
    pub fn shape(&self) -> [i64; 4] {
        let side = i64::from(self.image_size);
        [self.samples.len() as i64, 3, side, side]
    }
}

/// Makes numbers of images' bytes: `(value / 255 - mean) / std` by CLIP's mean and deviation.
#[derive(Debug)]
pub struct Normalise {
    mean: Tensor,
    std: Tensor,
}

impl Normalise {
    /// On a device.
    pub fn new(device: Device) -> Self {
        let constant = |values: &[f32; 3]| Tensor::from_slice(values).view([1, 3, 1, 1]).to_device(device);
        Self { mean: constant(&MEAN), std: constant(&STD) }
    }

    /// Images [n, 3, S, S] of bytes in fp32.
    pub fn apply(&self, bytes: &Tensor) -> Tensor {
        let mut values = bytes.to_kind(Kind::Float);
        let _ = values.g_div_scalar_(255.0);
        let _ = values.g_sub_(&self.mean);
        values.g_div_(&self.std)
    }
}

/// A batch's images as normalised numbers, see [`Normalise`].
pub fn pixels_to_tensor(batch: &Batch, device: Device) -> Tensor {
    let bytes = Tensor::from_data_size(&batch.pixels, &batch.shape(), Kind::Uint8);
    Normalise::new(device).apply(&bytes.to_device(device))
}
