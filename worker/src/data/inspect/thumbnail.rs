//! Small pictures for a page: an image, scaled down, as a `data:` URI.

use crate::data::pixels::Decoder;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use turbojpeg::{Compressor, PixelFormat, Subsamp};

/// The longer side of a picture in pixels.
const SIDE: u32 = 192;
/// JPEG's quality, 1 to 100.
const QUALITY: i32 = 80;

/// Makes pictures. One for a page.
#[derive(Default)]
pub(super) struct Thumbnails {
    decoder: Decoder,
}

impl Thumbnails {
    /// The picture of an image of any kind, a JPEG; an error says why there is none.
    pub(super) fn data_uri(&mut self, image: &[u8]) -> Result<String, String> {
        let picture = self.decoder.decode(image).map_err(|error| error.to_string())?;
        let (width, height) = (picture.width, picture.height);
        let gray = picture.pixels().len() == width as usize * height as usize;
        let target = size(width, height);
        let small = shrunk(picture.pixels(), (width, height), target, if gray { 1 } else { 3 });
        let jpeg = encode(&small, target, gray).map_err(|error| error.to_string())?;
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

/// Pixels of `target`'s size, each the mean of the pixels that it covers.
fn shrunk(pixels: &[u8], (width, height): (u32, u32), target: (u32, u32), channels: usize) -> Vec<u8> {
    let covered = |place: u32, of: u32, inputs: u32| {
        let edge = |place: u32| (u64::from(place) * u64::from(inputs) / u64::from(of)) as usize;
        edge(place)..edge(place + 1).max(edge(place) + 1)
    };
    let mut small = Vec::with_capacity(target.0 as usize * target.1 as usize * channels);
    for row in 0..target.1 {
        for column in 0..target.0 {
            let (rows, columns) = (covered(row, target.1, height), covered(column, target.0, width));
            let count = (rows.len() * columns.len()) as u64;
            for channel in 0..channels {
                let at =
                    |row: usize, column: usize| u64::from(pixels[(row * width as usize + column) * channels + channel]);
                let sum: u64 =
                    rows.clone().flat_map(|row| columns.clone().map(move |c| (row, c))).map(|(r, c)| at(r, c)).sum();
                small.push(((sum + count / 2) / count) as u8);
            }
        }
    }
    small
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
    fn pixels_are_means_of_what_they_cover() {
        assert_eq!(shrunk(&[0, 10, 20, 30, 100, 110], (3, 2), (1, 2), 1), [10, 80]);
        assert_eq!(shrunk(&[1, 2, 3, 3, 4, 5], (2, 1), (1, 1), 3), [2, 3, 4]);
        assert_eq!(shrunk(&[7, 8], (2, 1), (2, 1), 1), [7, 8]);
    }

    #[test]
    fn sides_keep_their_ratio_and_are_never_nothing() {
        assert_eq!(size(384, 192), (192, 96));
        assert_eq!(size(100, 90), (100, 90));
        assert_eq!(size(10_000, 3), (192, 1));
    }
}
