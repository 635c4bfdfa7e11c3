//! JPEGs, whole or only the rectangle that is used: the part of libjpeg-turbo's interface that the `turbojpeg` crate
//! leaves out is its cropping region, and without it half of an image is decoded to be thrown away.
//!
//! The pixels of a rectangle are those of the whole image, with smooth upsampling and the exact cosine transform: the fast
//! ones of libjpeg-turbo 3.1 save 2 %, or write outside of their buffers when a region is asked for. Rows above it cost
//! their entropy coding only, rows below it nothing, columns beside it no transform. So damage of the entropy-coded data
//! below the rectangle is not seen, and does no harm to it; a file that was cut off is refused wherever it was cut, as it
//! is when decoded whole.

mod binding;
mod markers;
#[cfg(test)]
mod tests;

use super::crop::Crop;
pub use binding::{Colors, Said};

use binding::Turbo;

/// How far beyond a rectangle's sides pixels are decoded: smooth upsampling of chroma looks one sample further, and one
/// iMCU is 32 pixels wide at most.
fn widened(crop: Crop, imcu_width: u32, width: u32) -> Crop {
    let left = crop.left.saturating_sub(imcu_width) / imcu_width * imcu_width;
    let right = (crop.left + crop.width).next_multiple_of(imcu_width).saturating_add(imcu_width).min(width);
    Crop { left, width: right - left, ..crop }
}

/// A decoder; one a thread.
#[derive(Debug)]
pub struct Jpeg(Turbo);

/// A JPEG whose header was read.
#[derive(Debug)]
pub struct Opened<'a>(binding::Opened<'a>);

impl Jpeg {
    /// A decoder, or why libjpeg-turbo gives none.
    pub fn new() -> Result<Self, Said> {
        Turbo::new().map(Self)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// When there is none, or libjpeg warns of it.
    pub fn open<'a>(&'a mut self, bytes: &'a [u8]) -> Result<Opened<'a>, Said> {
        let opened = self.0.open(bytes)?;
        if !markers::has_end(bytes) {
            return Err(Said::cut_off());
        }
        Ok(Opened(opened))
    }
}

impl Opened<'_> {
    /// Columns and rows.
    pub fn size(&self) -> (u32, u32) {
        self.0.size()
    }

    /// What a pixel consists of.
    pub fn colors(&self) -> Colors {
        self.0.colors()
    }

    /// Decodes at least the rectangle `wanted` into the front of `pixels`, which grows to hold it and `slack` more bytes,
    /// and returns which rectangle is there; its rows lie side by side.
    ///
    /// # Errors
    /// When libjpeg gives up, or warns of something that costs pixels.
    ///
    /// # Panics
    /// When `wanted` is not within the image.
    pub fn decode(mut self, wanted: Crop, pixels: &mut Vec<u8>, slack: usize) -> Result<Crop, Said> {
        let (width, height) = self.size();
        assert!(wanted.left + wanted.width <= width && wanted.top + wanted.height <= height, "{wanted:?} is outside");
        let whole = Crop { top: 0, left: 0, width, height };
        let region = self.0.imcu_width().map_or(whole, |imcu_width| widened(wanted, imcu_width, width));
        match self.decode_region(region, pixels, slack) {
            Err(said) if said.is_refused_region() => self.decode_region(whole, pixels, slack).map(|()| whole),
            result => result.map(|()| region),
        }
    }

    fn decode_region(&mut self, region: Crop, pixels: &mut Vec<u8>, slack: usize) -> Result<(), Said> {
        let size = region.width as usize * region.height as usize * self.colors().channels();
        if pixels.len() < size + slack {
            pixels.resize(size + slack, 0);
        }
        self.0.decode(region, &mut pixels[..size])
    }
}
