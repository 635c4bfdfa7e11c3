//! Decoded images in the modes that Pillow has for them, and how each of them becomes RGB.

use super::{
    crop::Crop,
    resample::{Pixels, SLACK},
};

/// What a pixel consists of. The mode decides how an image is resized when it becomes RGB only afterwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// One byte. Pillow's `L`.
    Gray,
    /// Red, green, blue.
    #[default]
    Rgb,
    /// Red, green, blue, alpha: `RGBA`, and `LA` with its gray three times. Resized with colours multiplied by alpha.
    Rgba,
    /// Cyan, magenta, yellow, black; 255 is full ink.
    Cmyk,
    /// Red, green, blue of `P` and `1`, which Pillow resizes by taking the nearest pixel.
    Indexed,
    /// 16 bits of gray, the lower byte first. Pillow's `I;16`.
    Gray16,
}

impl Mode {
    /// Bytes a pixel.
    pub fn bytes(self) -> usize {
        match self {
            Self::Gray => 1,
            Self::Gray16 => 2,
            Self::Rgb | Self::Indexed => 3,
            Self::Rgba | Self::Cmyk => 4,
        }
    }
}

/// An image, or a rectangle of one.
#[derive(Debug, Clone, Default)]
pub struct Picture {
    /// Columns of the whole image.
    pub width: u32,
    /// Rows of the whole image.
    pub height: u32,
    /// Which part of it is here.
    pub(super) part: Option<Crop>,
    /// What its pixels consist of.
    pub mode: Mode,
    /// Rows of the part, side by side, and [`SLACK`] bytes or more behind them.
    pub(super) bytes: Vec<u8>,
}

impl Picture {
    /// Which part of the image is here.
    pub fn part(&self) -> Crop {
        self.part.unwrap_or(Crop { top: 0, left: 0, width: self.width, height: self.height })
    }

    /// The pixels of the part.
    pub fn pixels(&self) -> &[u8] {
        let part = self.part();
        &self.bytes[..part.width as usize * part.height as usize * self.mode.bytes()]
    }

    /// A rectangle of the image.
    ///
    /// # Panics
    /// When it is not within the part that is here.
    pub fn view(&self, wanted: Crop) -> Pixels<'_> {
        let (part, size) = (self.part(), self.mode.bytes());
        assert!(
            part.top <= wanted.top
                && part.left <= wanted.left
                && wanted.top + wanted.height <= part.top + part.height
                && wanted.left + wanted.width <= part.left + part.width,
            "{wanted:?} is not within {part:?}"
        );
        let pitch = part.width as usize * size;
        let first = (wanted.top - part.top) as usize * pitch + (wanted.left - part.left) as usize * size;
        Pixels { bytes: &self.bytes[first..], pitch, width: wanted.width as usize, height: wanted.height as usize }
    }

    /// Becomes the whole of an image of `mode`, whose pixels `write` appends.
    pub(super) fn fill(&mut self, (width, height): (u32, u32), mode: Mode, write: impl FnOnce(&mut Vec<u8>)) {
        (self.width, self.height, self.part, self.mode) = (width, height, None, mode);
        self.bytes.clear();
        self.bytes.reserve(width as usize * height as usize * mode.bytes() + SLACK);
        write(&mut self.bytes);
        self.bytes.resize(self.bytes.len() + SLACK, 0);
    }

    /// Becomes RGB, or stays gray, as `Image.convert("RGB")` makes it. `scratch` takes the bytes from before.
    pub(super) fn convert(&mut self, scratch: &mut Vec<u8>) {
        let count = self.pixels().len() / self.mode.bytes();
        let (pixels, kept) = (&self.bytes[..count * self.mode.bytes()], self.mode);
        scratch.clear();
        match kept {
            Mode::Gray | Mode::Rgb => return,
            Mode::Indexed => {
                self.mode = Mode::Rgb;
                return;
            }
            Mode::Rgba => scratch.extend(pixels.chunks_exact(4).flat_map(|rgba| [rgba[0], rgba[1], rgba[2]])),
            Mode::Cmyk => {
                scratch.extend(pixels.chunks_exact(4).flat_map(|ink| rgb_of_cmyk([ink[0], ink[1], ink[2], ink[3]])));
            }
            Mode::Gray16 => scratch.extend(pixels.chunks_exact(2).map(|word| gray_of_16_bits([word[0], word[1]]))),
        }
        self.mode = if kept == Mode::Gray16 { Mode::Gray } else { Mode::Rgb };
        scratch.resize(scratch.len() + SLACK, 0);
        std::mem::swap(&mut self.bytes, scratch);
    }
}

/// `a * b / 255`, rounded as Pillow rounds it.
pub fn times(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    (((product >> 8) + product) >> 8) as u8
}

/// Pillow's plain conversion, without a colour profile.
pub fn rgb_of_cmyk([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let light = 255 - k;
    [c, m, y].map(|ink| light.saturating_sub(times(ink, light)))
}

/// Clipped, not scaled: so does Pillow, and models were trained with it. The lower byte comes first.
pub fn gray_of_16_bits([low, high]: [u8; 2]) -> u8 {
    if high > 0 { 255 } else { low }
}

/// A colour without the alpha that it was multiplied by.
pub fn divided([r, g, b, alpha]: [u8; 4]) -> [u8; 3] {
    match alpha {
        0 | 255 => [r, g, b],
        _ => [r, g, b].map(|colour| (255 * u32::from(colour) / u32::from(alpha)).min(255) as u8),
    }
}
