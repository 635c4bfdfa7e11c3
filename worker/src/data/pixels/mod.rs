//! An image's bytes to the pixels a model takes: decode what the crop needs, resize it as Pillow does.
//!
//! It knows images alone: not where their bytes come from, and nothing of batches.

mod crop;
mod decode;
mod eval;
mod geometry;
mod jpeg;
mod picture;
mod png;
mod random;
mod resample;
#[cfg(test)]
mod tests;
mod transform;

pub use decode::{DecodeError, Decoder, ImageKind};
pub use eval::EvalImages;
pub use geometry::Geometry;
pub use random::SampleDraws;
pub use transform::{Resampler, Transform};
