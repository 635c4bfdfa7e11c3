//! Bytes to RGB pixels, as Pillow's `Image.open(..).convert("RGB")` gives them: alpha is dropped and not composited,
//! palettes are expanded, 16 bits are cut to the upper 8, EXIF orientation is ignored. Gray of 16 bits without alpha is
//! clipped to 255 instead: so does Pillow, and models were trained with it.

use std::io::Cursor;
use turbojpeg::{Colorspace, Decompressor, PixelFormat};

/// The most pixels an image may have; Pillow refuses more, too.
pub const MOST_PIXELS: u64 = 178_956_970;

/// Why an image cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Neither JPEG, PNG nor WebP.
    #[error("neither JPEG nor PNG nor WebP by its first bytes")]
    UnknownKind,
    /// More pixels than are believed.
    #[error("{width} x {height} pixels are more than {MOST_PIXELS}")]
    TooLarge {
        /// Columns.
        width: u64,
        /// Rows.
        height: u64,
    },
    /// The decoder's own words.
    #[error("{kind}: {reason}")]
    Broken {
        /// Which decoder.
        kind: ImageKind,
        /// What it said.
        reason: String,
    },
}

/// What an image's first bytes say that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImageKind {
    /// JPEG.
    Jpeg,
    /// PNG.
    Png,
    /// WebP.
    Webp,
}

impl ImageKind {
    /// Looks at the first bytes.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(&[0xff, 0xd8, 0xff]) {
            Some(Self::Jpeg)
        } else if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            Some(Self::Png)
        } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
            Some(Self::Webp)
        } else {
            None
        }
    }

    /// `jpg`, `png` or `webp`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Png => "png",
            Self::Webp => "webp",
        }
    }
}

impl std::fmt::Display for ImageKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// An image in memory: rows of RGB bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rgb {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `height * width * 3` bytes.
    pub pixels: Vec<u8>,
}

/// A decoder with its buffers; one a thread.
#[derive(Debug, Default)]
pub struct Decoder {
    jpeg: Option<Decompressor>,
    /// The image decoded last.
    image: Rgb,
    scratch: Vec<u8>,
}

impl Decoder {
    /// Decodes an image; it stays valid until the next one.
    pub fn decode(&mut self, bytes: &[u8]) -> Result<&Rgb, DecodeError> {
        let kind = ImageKind::of(bytes).ok_or(DecodeError::UnknownKind)?;
        let broken = |reason: String| DecodeError::Broken { kind, reason };
        match kind {
            ImageKind::Jpeg => self.jpeg(bytes, broken),
            ImageKind::Png => self.png(bytes, broken),
            ImageKind::Webp => self.webp(bytes, broken),
        }?;
        Ok(&self.image)
    }

    fn jpeg(&mut self, bytes: &[u8], broken: impl Fn(String) -> DecodeError) -> Result<(), DecodeError> {
        let said = |error: turbojpeg::Error| broken(error.to_string());
        let jpeg = match &mut self.jpeg {
            Some(jpeg) => jpeg,
            none => none.insert(Decompressor::new().map_err(said)?),
        };
        let header = jpeg.read_header(bytes).map_err(said)?;
        let (width, height) = (header.width, header.height);
        let count = checked_pixels(width as u64, height as u64)?;
        let four = matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK);
        let (format, samples) = if four { (PixelFormat::CMYK, 4) } else { (PixelFormat::RGB, 3) };
        let pixels = if four { &mut self.scratch } else { &mut self.image.pixels };
        pixels.resize(count * samples, 0);
        let image = turbojpeg::Image { pixels: pixels.as_mut_slice(), width, pitch: width * samples, height, format };
        match jpeg.decompress(bytes, image) {
            Err(error) if !is_harmless(&error.to_string()) => return Err(said(error)),
            _ => {}
        }
        (self.image.width, self.image.height) = (width as u32, height as u32);
        if four {
            self.image.pixels.clear();
            self.image.pixels.extend(
                self.scratch
                    .chunks_exact(4)
                    .flat_map(|cmyk| rgb_of_inverted_cmyk([cmyk[0], cmyk[1], cmyk[2], cmyk[3]])),
            );
        }
        Ok(())
    }

    fn png(&mut self, bytes: &[u8], broken: impl Fn(String) -> DecodeError) -> Result<(), DecodeError> {
        let said = |error: png::DecodingError| broken(error.to_string());
        let mut decoder = png::Decoder::new(Cursor::new(bytes));
        decoder.set_transformations(png::Transformations::EXPAND);
        let mut reader = decoder.read_info().map_err(said)?;
        let (width, height) = reader.info().size();
        let count = checked_pixels(u64::from(width), u64::from(height))?;
        let size = reader.output_buffer_size().ok_or_else(|| broken("its size overflows".to_owned()))?;
        self.scratch.resize(size, 0);
        reader.next_frame(&mut self.scratch).map_err(said)?;
        let (color, depth) = reader.output_color_type();
        let samples = color.samples();
        let clipped = reader.info().color_type == png::ColorType::Grayscale && depth == png::BitDepth::Sixteen;
        // Of 16 bits the upper 8 come first.
        let step = if depth == png::BitDepth::Sixteen { 2 } else { 1 };
        self.image.pixels.clear();
        self.image.pixels.reserve(count * 3);
        for pixel in self.scratch.chunks_exact(samples * step) {
            let rgb = match samples {
                3.. => [pixel[0], pixel[step], pixel[2 * step]],
                _ if clipped && pixel[0] > 0 => [255; 3],
                _ if clipped => [pixel[1]; 3],
                _ => [pixel[0]; 3],
            };
            self.image.pixels.extend_from_slice(&rgb);
        }
        (self.image.width, self.image.height) = (width, height);
        Ok(())
    }

    fn webp(&mut self, bytes: &[u8], broken: impl Fn(String) -> DecodeError) -> Result<(), DecodeError> {
        let said = |error: image_webp::DecodingError| broken(error.to_string());
        let mut decoder = image_webp::WebPDecoder::new(Cursor::new(bytes)).map_err(said)?;
        let (width, height) = decoder.dimensions();
        let count = checked_pixels(u64::from(width), u64::from(height))?;
        if decoder.has_alpha() {
            self.scratch.resize(count * 4, 0);
            decoder.read_image(&mut self.scratch).map_err(said)?;
            self.image.pixels.clear();
            self.image.pixels.extend(self.scratch.chunks_exact(4).flat_map(|rgba| [rgba[0], rgba[1], rgba[2]]));
        } else {
            self.image.pixels.resize(count * 3, 0);
            decoder.read_image(&mut self.image.pixels).map_err(said)?;
        }
        (self.image.width, self.image.height) = (width, height);
        Ok(())
    }
}

/// The number of pixels, if it is one that is believed.
pub fn checked_pixels(width: u64, height: u64) -> Result<usize, DecodeError> {
    match width.checked_mul(height) {
        Some(count) if count > 0 && count <= MOST_PIXELS => Ok(count as usize),
        _ => Err(DecodeError::TooLarge { width, height }),
    }
}

/// Warnings of libjpeg after which all pixels are there.
fn is_harmless(message: &str) -> bool {
    message.contains("extraneous bytes before marker") || message.contains("Unknown Adobe color transform")
}

/// CMYK JPEGs are stored inverted (Adobe's convention, which Pillow assumes): stored value v means 255 - v of ink.
fn rgb_of_inverted_cmyk([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let light = u32::from(k);
    [c, m, y].map(|stored| {
        let product = (255 - u32::from(stored)) * light + 128;
        (light.saturating_sub(((product >> 8) + product) >> 8)) as u8
    })
}
