//! Bytes to pixels, as Pillow's `Image.open(..)` and `convert("RGB")` give them: alpha is dropped and not composited,
//! palettes are expanded, 16 bits are cut to the upper 8, EXIF orientation is ignored. Gray of 16 bits without alpha is
//! clipped to 255 instead: so does Pillow, and models were trained with it.

use super::{
    crop::Crop,
    jpeg::{Colors, Jpeg, Said},
    picture::{Mode, Picture},
    png,
    resample::SLACK,
};
use common::recipe::ConvertToRgb;
use std::io::Cursor;

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

/// A decoder with its buffers; one a thread.
#[derive(Debug, Default)]
pub struct Decoder {
    jpeg: Option<Jpeg>,
    /// The image decoded last.
    picture: Picture,
    scratch: Vec<u8>,
}

impl Decoder {
    /// Decodes an image to RGB or gray; it stays valid until the next one.
    pub fn decode(&mut self, bytes: &[u8]) -> Result<&Picture, DecodeError> {
        self.decode_part(bytes, ConvertToRgb::BeforeResize, |(width, height)| {
            Ok(Crop { top: 0, left: 0, height, width })
        })
    }

    /// Decodes at least the rectangle that `choose` names when it is told (width, height), in the mode that `convert`
    /// leaves. Only JPEGs are decoded in part.
    pub fn decode_part(
        &mut self,
        bytes: &[u8],
        convert: ConvertToRgb,
        choose: impl FnOnce((u32, u32)) -> Result<Crop, DecodeError>,
    ) -> Result<&Picture, DecodeError> {
        let kind = ImageKind::of(bytes).ok_or(DecodeError::UnknownKind)?;
        let broken = |reason: String| DecodeError::Broken { kind, reason };
        match kind {
            ImageKind::Jpeg => self.jpeg(bytes, broken, choose)?,
            ImageKind::Png => {
                png::decode(bytes, &mut self.scratch, &mut self.picture, broken)?;
                choose((self.picture.width, self.picture.height))?;
            }
            ImageKind::Webp => {
                self.webp(bytes, broken)?;
                choose((self.picture.width, self.picture.height))?;
            }
        }
        if convert == ConvertToRgb::BeforeResize {
            self.picture.convert(&mut self.scratch);
        }
        Ok(&self.picture)
    }

    fn jpeg(
        &mut self,
        bytes: &[u8],
        broken: impl Fn(String) -> DecodeError,
        choose: impl FnOnce((u32, u32)) -> Result<Crop, DecodeError>,
    ) -> Result<(), DecodeError> {
        let said = |said: Said| broken(said.to_string());
        let jpeg = match &mut self.jpeg {
            Some(jpeg) => jpeg,
            none => none.insert(Jpeg::new().map_err(said)?),
        };
        let opened = jpeg.open(bytes).map_err(said)?;
        let (size, colors) = (opened.size(), opened.colors());
        checked_pixels(u64::from(size.0), u64::from(size.1))?;
        let picture = &mut self.picture;
        (picture.width, picture.height) = size;
        picture.part = Some(opened.decode(choose(size)?, &mut picture.bytes, SLACK).map_err(said)?);
        picture.mode = match colors {
            Colors::Gray => Mode::Gray,
            Colors::Rgb => Mode::Rgb,
            Colors::InvertedCmyk => {
                let part = picture.part();
                let length = part.width as usize * part.height as usize * Mode::Cmyk.bytes();
                picture.bytes[..length].iter_mut().for_each(|stored| *stored = !*stored);
                Mode::Cmyk
            }
        };
        Ok(())
    }

    fn webp(&mut self, bytes: &[u8], broken: impl Fn(String) -> DecodeError) -> Result<(), DecodeError> {
        let said = |error: image_webp::DecodingError| broken(error.to_string());
        let mut decoder = image_webp::WebPDecoder::new(Cursor::new(bytes)).map_err(said)?;
        let size = decoder.dimensions();
        let count = checked_pixels(u64::from(size.0), u64::from(size.1))?;
        let mode = if decoder.has_alpha() { Mode::Rgba } else { Mode::Rgb };
        let mut result = Ok(());
        self.picture.fill(size, mode, |pixels| {
            pixels.resize(count * mode.bytes(), 0);
            result = decoder.read_image(pixels);
        });
        result.map_err(said)
    }
}

/// The number of pixels, if it is one that is believed.
pub fn checked_pixels(width: u64, height: u64) -> Result<usize, DecodeError> {
    match width.checked_mul(height) {
        Some(count) if count > 0 && count <= MOST_PIXELS => Ok(count as usize),
        _ => Err(DecodeError::TooLarge { width, height }),
    }
}
