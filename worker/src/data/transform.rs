//! Pixels of the size the model takes, as torchvision makes them of PIL images.

use super::{
    crop::{Crop, centre_crop, random_crop, shorter_side_to},
    decode::{DecodeError, ImageKind, Rgb, checked_pixels},
    random::Draws,
};
use common::recipe::Augment;
use fast_image_resize::{
    FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer,
    images::{CroppedImage, Image, ImageRef},
};

/// What is done to an image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Transform {
    /// `RandomResizedCrop(size, scale, ratio, bicubic)`.
    Train {
        /// The crop's range.
        augment: Augment,
    },
    /// `Resize(size, bicubic)`, `CenterCrop(size)`.
    Eval,
}

/// Resizes images; one a thread.
#[derive(Debug, Default)]
pub struct Resampler {
    resizer: Resizer,
    narrow: Vec<u8>,
    resized: Vec<u8>,
}

impl Resampler {
    /// Writes `3 * size * size` bytes, channels first, of an image.
    ///
    /// # Errors
    /// When an image is so long and thin that resizing it would take more pixels than are believed.
    pub fn apply(
        &mut self,
        transform: &Transform,
        image: &Rgb,
        draws: &mut impl Draws,
        size: u32,
        pixels: &mut [u8],
    ) -> Result<(), DecodeError> {
        let (width, height) = (image.width, image.height);
        match transform {
            Transform::Train { augment } => {
                let crop = random_crop(width, height, augment, draws);
                self.resize(image, crop, (size, size))?;
                channels_first(&self.resized, size, Crop { top: 0, left: 0, width: size, height: size }, size, pixels);
            }
            Transform::Eval => {
                let (w, h) = shorter_side_to(size, width, height);
                checked_pixels(u64::from(w), u64::from(h))?;
                self.resize(image, Crop { top: 0, left: 0, width, height }, (w, h))?;
                channels_first(&self.resized, w, centre_crop(size, w, h), size, pixels);
            }
        }
        Ok(())
    }

    /// Bicubic with antialias (a = -0.5): Pillow's kernel, and Pillow's order of passes, rows first (up to Pillow
    /// 12; the resizer by itself does columns first). Pixels outside of the crop are not seen.
    fn resize(&mut self, image: &Rgb, crop: Crop, (width, height): (u32, u32)) -> Result<(), DecodeError> {
        let Self { resizer, narrow, resized } = self;
        let whole = ImageRef::new(image.width, image.height, &image.pixels, PixelType::U8x3).map_err(impossible)?;
        let source = CroppedImage::new(&whole, crop.left, crop.top, crop.width, crop.height).map_err(impossible)?;
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom)).use_alpha(false);
        narrow.resize(width as usize * crop.height as usize * 3, 0);
        let mut between = Image::from_slice_u8(width, crop.height, narrow, PixelType::U8x3).map_err(impossible)?;
        resizer.resize(&source, &mut between, &options).map_err(impossible)?;
        resized.resize(width as usize * height as usize * 3, 0);
        let mut target = Image::from_slice_u8(width, height, resized, PixelType::U8x3).map_err(impossible)?;
        resizer.resize(&between, &mut target, &options).map_err(impossible)
    }
}

/// The sizes of buffers and crops are computed here; an error of the resizer means that one of them is wrong.
fn impossible(error: impl std::fmt::Display) -> DecodeError {
    DecodeError::Broken { kind: ImageKind::Jpeg, reason: format!("resizing: {error}") }
}

/// Copies a square of an image of `width` columns to planes.
fn channels_first(image: &[u8], width: u32, crop: Crop, size: u32, pixels: &mut [u8]) {
    let (width, size) = (width as usize, size as usize);
    let (red, rest) = pixels.split_at_mut(size * size);
    let (green, blue) = rest.split_at_mut(size * size);
    for row in 0..size {
        let start = ((crop.top as usize + row) * width + crop.left as usize) * 3;
        let source = image[start..start + size * 3].chunks_exact(3);
        let line = row * size..(row + 1) * size;
        let planes = red[line.clone()].iter_mut().zip(&mut green[line.clone()]).zip(&mut blue[line]);
        for (((r, g), b), pixel) in planes.zip(source) {
            (*r, *g, *b) = (pixel[0], pixel[1], pixel[2]);
        }
    }
}
