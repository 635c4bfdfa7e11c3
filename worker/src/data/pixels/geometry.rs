//! From an image's size to what is done to it: known before a pixel is decoded.

use super::{
    crop::{Crop, centre_crop, random_crop, shorter_side_to},
    decode::{DecodeError, checked_pixels},
    random::Draws,
    resample::Axis,
    transform::Transform,
};

/// A crop, how each of its sides is resampled, and which part of the result is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// What is resized; pixels outside of it are not seen.
    pub crop: Crop,
    /// Its columns.
    pub across: Axis,
    /// Its rows.
    pub down: Axis,
}

impl Geometry {
    /// What `transform` does to an image.
    ///
    /// # Errors
    /// When the image is so long and thin that resizing it would take more pixels than are believed.
    pub fn new(
        transform: &Transform,
        (width, height): (u32, u32),
        draws: &mut impl Draws,
        size: u32,
    ) -> Result<Self, DecodeError> {
        let axis = |inputs, outputs, start| Axis { inputs, outputs, window: start..start + size };
        match transform {
            Transform::Train { augment } => {
                let crop = random_crop(width, height, augment, draws);
                Ok(Self { crop, across: axis(crop.width, size, 0), down: axis(crop.height, size, 0) })
            }
            Transform::Eval => {
                let (w, h) = shorter_side_to(size, width, height);
                checked_pixels(u64::from(w), u64::from(h))?;
                let kept = centre_crop(size, w, h);
                let crop = Crop { top: 0, left: 0, width, height };
                Ok(Self { crop, across: axis(width, w, kept.left), down: axis(height, h, kept.top) })
            }
        }
    }

    /// The rectangle of the image that the result depends on.
    pub fn needed(&self) -> Crop {
        let (columns, rows) = (self.across.needed(), self.down.needed());
        Crop {
            top: self.crop.top + rows.start,
            left: self.crop.left + columns.start,
            height: rows.len() as u32,
            width: columns.len() as u32,
        }
    }

    /// Whether Pillow hands the crop on as it is.
    pub fn is_copy(&self) -> bool {
        self.across.is_identity() && self.down.is_identity()
    }
}
