//! Pixels of the size the model takes, as torchvision makes them of PIL images.

use super::{
    geometry::Geometry,
    picture::{Mode, Picture, divided, gray_of_16_bits, rgb_of_cmyk, times},
    resample::{PillowResize, Pixels, SLACK, nearest},
};
use common::recipe::{Augment, Resize};
use fast_image_resize::{
    FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer,
    images::{Image, ImageRef},
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

/// Why the fast resizer has no errors: it has them for sizes and crops alone.
const FITS: &str = "buffers and crops are computed to fit";

/// Resizes images; one a thread.
#[derive(Debug, Default)]
pub struct Resampler {
    pillow: PillowResize,
    resizer: Resizer,
    first: Vec<u8>,
    second: Vec<u8>,
    made: Vec<u8>,
}

impl Resampler {
    /// Writes `3 * size * size` bytes, channels first: what `geometry` makes of an image of which at least
    /// [`Geometry::needed`] is there.
    ///
    /// # Panics
    /// When the part of the image that is needed is not there.
    pub fn apply(&mut self, resize: Resize, geometry: &Geometry, picture: &Picture, pixels: &mut [u8]) {
        let needed = geometry.needed();
        let source = picture.view(needed);
        let fast = resize == Resize::Fast && !geometry.is_copy();
        match picture.mode {
            Mode::Rgb if fast => self.fast(geometry, source, PixelType::U8x3, pixels),
            Mode::Gray if fast => self.fast(geometry, source, PixelType::U8, pixels),
            Mode::Rgb => self.pillow.resize::<3>(source, &geometry.across, &geometry.down, pixels),
            Mode::Gray => self.gray(geometry, source, pixels),
            Mode::Gray16 => self.words(geometry, source, pixels),
            Mode::Indexed => take_nearest(geometry, source, pixels),
            Mode::Cmyk => self.of_four(geometry, source, pixels, rgb_of_cmyk),
            Mode::Rgba if geometry.is_copy() => self.of_four(geometry, source, pixels, |[r, g, b, _]| [r, g, b]),
            Mode::Rgba => {
                let mut multiplied = std::mem::take(&mut self.first);
                multiply(source, &mut multiplied);
                let Pixels { width, height, .. } = source;
                let source = Pixels { bytes: &multiplied, pitch: 4 * width, width, height };
                self.of_four(geometry, source, pixels, divided);
                self.first = multiplied;
            }
        }
    }

    fn gray(&mut self, geometry: &Geometry, source: Pixels<'_>, pixels: &mut [u8]) {
        let plane = pixels.len() / 3;
        self.pillow.resize::<1>(source, &geometry.across, &geometry.down, &mut pixels[..plane]);
        thrice(pixels);
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
        geometry: &Geometry,
        source: Pixels<'_>,
        pixels: &mut [u8],
        rgb: impl Fn([u8; 4]) -> [u8; 3],
    ) {
        let plane = pixels.len() / 3;
        self.second.resize(4 * plane, 0);
        self.pillow.resize::<4>(source, &geometry.across, &geometry.down, &mut self.second);
        for at in 0..plane {
            let made = rgb([0, 1, 2, 3].map(|c| self.second[c * plane + at]));
            for (c, value) in made.into_iter().enumerate() {
                pixels[c * plane + at] = value;
            }
        }
    }

    /// Rows first, as Pillow; the resizer by itself does columns first.
    fn fast(&mut self, geometry: &Geometry, source: Pixels<'_>, kind: PixelType, pixels: &mut [u8]) {
        let (across, down) = (&geometry.across, &geometry.down);
        let (channels, columns) = (kind.size(), across.window.len() as u32);
        // The resizer takes images without gaps between rows.
        let row = source.width * channels;
        let gapless = if source.pitch == row {
            &source.bytes[..row * source.height]
        } else {
            self.second.clear();
            let lines = source.bytes.chunks(source.pitch).take(source.height);
            lines.for_each(|line| self.second.extend_from_slice(&line[..row]));
            &self.second[..]
        };
        let whole = ImageRef::new(source.width as u32, source.height as u32, gapless, kind).expect(FITS);
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom)).use_alpha(false);
        self.first.resize(columns as usize * source.height * channels, 0);
        let mut between = Image::from_slice_u8(columns, source.height as u32, &mut self.first, kind).expect(FITS);
        let (left, width) = across.span();
        let rows = options.crop(left, 0.0, width, source.height as f64);
        self.resizer.resize(&whole, &mut between, &rows).expect(FITS);
        self.made.resize(columns as usize * down.window.len() * channels, 0);
        let mut target = Image::from_slice_u8(columns, down.window.len() as u32, &mut self.made, kind).expect(FITS);
        let (top, height) = down.span();
        let columns = options.crop(0.0, top, f64::from(columns), height);
        self.resizer.resize(&between, &mut target, &columns).expect(FITS);
        let plane = pixels.len() / 3;
        if channels == 1 {
            pixels[..plane].copy_from_slice(&self.made);
            thrice(pixels);
        } else {
            channels_first(&self.made, pixels);
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

fn channels_first(image: &[u8], pixels: &mut [u8]) {
    let plane = pixels.len() / 3;
    let (red, rest) = pixels.split_at_mut(plane);
    let (green, blue) = rest.split_at_mut(plane);
    let planes = red.iter_mut().zip(green).zip(blue);
    for (((r, g), b), pixel) in planes.zip(image.chunks_exact(3)) {
        (*r, *g, *b) = (pixel[0], pixel[1], pixel[2]);
    }
}
