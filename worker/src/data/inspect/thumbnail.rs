//! Small pictures for a page: an image, scaled down, as a `data:` URI.

use crate::data::pixels::Decoder;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use fast_image_resize::{
    FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer,
    images::{Image, ImageRef},
};
use turbojpeg::{Compressor, PixelFormat, Subsamp};

/// The longer side of a picture in pixels.
const SIDE: u32 = 192;
/// JPEG's quality, 1 to 100.
const QUALITY: i32 = 80;

/// Makes pictures. One for a page.
#[derive(Default)]
pub(super) struct Thumbnails {
    decoder: Decoder,
    resizer: Resizer,
}

impl Thumbnails {
    /// The picture of an image of any kind, a JPEG; an error says why there is none.
    pub(super) fn data_uri(&mut self, image: &[u8]) -> Result<String, String> {
        let picture = self.decoder.decode(image).map_err(|error| error.to_string())?;
        let (width, height) = (picture.width, picture.height);
        let gray = picture.pixels().len() == width as usize * height as usize;
        let kind = if gray { PixelType::U8 } else { PixelType::U8x3 };
        let source = ImageRef::new(width, height, picture.pixels(), kind).map_err(|error| error.to_string())?;
        let (across, down) = size(width, height);
        let mut small = Image::new(across, down, kind);
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
        self.resizer.resize(&source, &mut small, &options).map_err(|error| error.to_string())?;
        let jpeg = encode(small.buffer(), (across, down), gray).map_err(|error| error.to_string())?;
        Ok(format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg)))
    }
}

fn encode(pixels: &[u8], (width, height): (u32, u32), gray: bool) -> turbojpeg::Result<Vec<u8>> {
    let (format, subsampling, channels) =
        if gray { (PixelFormat::GRAY, Subsamp::Gray, 1) } else { (PixelFormat::RGB, Subsamp::Sub2x2, 3) };
    let (width, height) = (width as usize, height as usize);
    let mut compressor = Compressor::new()?;
    compressor.set_quality(QUALITY)?;
    compressor.set_subsamp(subsampling)?;
    compressor.compress_to_vec(turbojpeg::Image { pixels, width, pitch: width * channels, height, format })
}

/// The size of a picture of an image: no larger than the image, no side of nothing.
fn size(width: u32, height: u32) -> (u32, u32) {
    let longer = width.max(height);
    if longer <= SIDE {
        return (width, height);
    }
    let scaled =
        |side: u32| u32::try_from(u64::from(side) * u64::from(SIDE) / u64::from(longer)).map_or(SIDE, |n| n.max(1));
    (scaled(width), scaled(height))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::image;

    #[test]
    fn images_of_every_kind_become_small_jpegs() {
        let mut thumbnails = Thumbnails::default();
        for name in ["444.jpg", "gray.jpg", "cmyk.jpg", "gray-16.png", "landscape.png"] {
            let uri = thumbnails.data_uri(&image(name)).unwrap();
            let jpeg = STANDARD.decode(uri.strip_prefix("data:image/jpeg;base64,").unwrap()).unwrap();
            let (before, mut decoder) = (image(name), Decoder::default());
            let original = decoder.decode(&before).map(|picture| (picture.width, picture.height)).unwrap();
            let small = decoder.decode(&jpeg).map(|picture| (picture.width, picture.height)).unwrap();
            assert_eq!(small, size(original.0, original.1), "{name}");
        }
        assert!(thumbnails.data_uri(b"<html>").unwrap_err().contains("neither JPEG nor PNG"));
    }

    #[test]
    fn sides_keep_their_ratio_and_are_never_nothing() {
        assert_eq!(size(384, 192), (192, 96));
        assert_eq!(size(100, 90), (100, 90));
        assert_eq!(size(10_000, 3), (192, 1));
    }
}
