//! Pixels of the size the model takes, as torchvision makes them of PIL images.

use super::{
    geometry::Geometry,
    picture::{Mode, Picture, divided, gray_of_16_bits, rgb_of_cmyk, times},
    resample::{PillowResize, Pixels, SLACK, nearest},
};
use common::recipe::{Augment, PixelMode};

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
    pillow: PillowResize,
    multiplied: Vec<u8>,
    planes: Vec<u8>,
}

impl Resampler {
    /// Writes `3 * size * size` bytes, channels first: what `geometry` makes of an image of which at least
    /// [`Geometry::needed`] is there.
    ///
    /// # Panics
    /// When the part of the image that is needed is not there.
    pub fn apply(&mut self, mode: PixelMode, geometry: &Geometry, picture: &Picture, pixels: &mut [u8]) {
        let needed = geometry.needed();
        let source = picture.view(needed);
        let axes = (&geometry.across, &geometry.down);
        match picture.mode {
            Mode::Rgb => self.pillow.resize::<3>(mode, source, axes, pixels),
            Mode::Gray => {
                let plane = pixels.len() / 3;
                self.pillow.resize::<1>(mode, source, axes, &mut pixels[..plane]);
                thrice(pixels);
            }
            Mode::Gray16 => self.words(geometry, source, pixels),
            Mode::Indexed => take_nearest(geometry, source, pixels),
            Mode::Cmyk => self.of_four((mode, geometry), source, pixels, rgb_of_cmyk),
            Mode::Rgba if geometry.is_copy() => {
                self.of_four((mode, geometry), source, pixels, |[r, g, b, _]| [r, g, b])
            }
            Mode::Rgba => {
                let mut multiplied = std::mem::take(&mut self.multiplied);
                multiply(source, &mut multiplied);
                let Pixels { width, height, .. } = source;
                let source = Pixels { bytes: &multiplied, pitch: 4 * width, width, height };
                self.of_four((mode, geometry), source, pixels, divided);
                self.multiplied = multiplied;
            }
        }
    }

    fn words(&mut self, geometry: &Geometry, source: Pixels<'_>, pixels: &mut [u8]) {
        let words = self.pillow.resize_words(source, &geometry.across, &geometry.down);
        for (pixel, word) in pixels.iter_mut().zip(words) {
            *pixel = gray_of_16_bits(word.to_le_bytes());
        }
        thrice(pixels);
    }

    /// Resizes four channels, and makes RGB of each pixel after.
    fn of_four(
        &mut self,
        (mode, geometry): (PixelMode, &Geometry),
        source: Pixels<'_>,
        pixels: &mut [u8],
        rgb: impl Fn([u8; 4]) -> [u8; 3],
    ) {
        let plane = pixels.len() / 3;
        self.planes.resize(4 * plane, 0);
        self.pillow.resize::<4>(mode, source, (&geometry.across, &geometry.down), &mut self.planes);
        for at in 0..plane {
            let made = rgb([0, 1, 2, 3].map(|c| self.planes[c * plane + at]));
            for (c, value) in made.into_iter().enumerate() {
                pixels[c * plane + at] = value;
            }
        }
    }
}

/// The first plane, copied to the other two.
fn thrice(pixels: &mut [u8]) {
    let (red, rest) = pixels.split_at_mut(pixels.len() / 3);
    rest.chunks_exact_mut(red.len()).for_each(|plane| plane.copy_from_slice(red));
}

/// Colours multiplied by alpha, without gaps between rows.
fn multiply(source: Pixels<'_>, multiplied: &mut Vec<u8>) {
    multiplied.clear();
    for line in source.bytes.chunks(source.pitch).take(source.height) {
        for rgba in line[..4 * source.width].chunks_exact(4) {
            let colour = |c: usize| times(rgba[c], rgba[3]);
            multiplied.extend([colour(0), colour(1), colour(2), rgba[3]]);
        }
    }
    multiplied.resize(multiplied.len() + SLACK, 0);
}

fn take_nearest(geometry: &Geometry, source: Pixels<'_>, pixels: &mut [u8]) {
    let (columns, rows) = (nearest(&geometry.across), nearest(&geometry.down));
    let plane = pixels.len() / 3;
    for (at, (row, column)) in rows.iter().flat_map(|row| columns.iter().map(move |column| (row, column))).enumerate() {
        for c in 0..3 {
            pixels[c * plane + at] = source.bytes[row * source.pitch + 3 * column + c];
        }
    }
}
