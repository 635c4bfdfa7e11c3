//! A rectangle decoded by itself is that rectangle of the whole image.

use super::{Colors, Jpeg};
use crate::data::pixels::crop::Crop;
use proptest::prelude::*;
use turbojpeg::{Compressor, Image, PixelFormat, Subsamp};

/// How a JPEG is made.
#[derive(Debug, Clone)]
struct Recipe {
    size: (usize, usize),
    subsamp: Subsamp,
    format: PixelFormat,
    progressive: bool,
    quality: i32,
    noise: u64,
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let subsamp = prop::sample::select(vec![
        Subsamp::None,
        Subsamp::Sub2x1,
        Subsamp::Sub2x2,
        Subsamp::Sub1x2,
        Subsamp::Sub4x1,
        Subsamp::Sub1x4,
        Subsamp::Gray,
    ]);
    let format = prop::sample::select(vec![PixelFormat::RGB, PixelFormat::RGB, PixelFormat::CMYK]);
    ((1usize..150, 1usize..150), subsamp, format, any::<bool>(), 20..100i32, any::<u64>()).prop_map(
        |(size, subsamp, format, progressive, quality, noise)| {
            // A CMYK image has no gray form.
            let subsamp = if format == PixelFormat::CMYK && subsamp == Subsamp::Gray { Subsamp::None } else { subsamp };
            Recipe { size, subsamp, format, progressive, quality, noise }
        },
    )
}

fn compress(recipe: &Recipe) -> Vec<u8> {
    let (width, height) = recipe.size;
    let pitch = width * recipe.format.size();
    let mut state = recipe.noise | 1;
    let mut pixels = vec![0; pitch * height];
    for (i, byte) in pixels.iter_mut().enumerate() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = ((i / 5 + i / pitch * 3) as u8).wrapping_add((state >> 59) as u8);
    }
    let mut compressor = Compressor::new().unwrap();
    compressor.set_quality(recipe.quality).unwrap();
    compressor.set_subsamp(recipe.subsamp).unwrap();
    compressor.set_progressive(recipe.progressive).unwrap();
    let image = Image { pixels: pixels.as_slice(), width, pitch, height, format: recipe.format };
    compressor.compress_to_vec(image).unwrap()
}

fn pixels(jpeg: &mut Jpeg, bytes: &[u8], wanted: impl FnOnce(u32, u32) -> Crop) -> (Crop, Crop, usize, Vec<u8>) {
    let mut pixels = vec![0xa5; 64];
    let opened = jpeg.open(bytes).unwrap();
    let (size, colors) = (opened.size(), opened.colors());
    let wanted = wanted(size.0, size.1);
    let part = opened.decode(wanted, &mut pixels, 16).unwrap();
    (wanted, part, colors.channels(), pixels)
}

fn cut(part: Crop, channels: usize, pixels: &[u8], wanted: Crop) -> Vec<u8> {
    let row = |row: u32| {
        let first = (row - part.top) as usize * part.width as usize + (wanted.left - part.left) as usize;
        &pixels[first * channels..][..wanted.width as usize * channels]
    };
    (wanted.top..wanted.top + wanted.height).flat_map(row).copied().collect()
}

fn whole(width: u32, height: u32) -> Crop {
    Crop { top: 0, left: 0, width, height }
}

/// Compares a rectangle of an image with that of the whole; `place` are its corner and size as shares of 65,536.
fn check(jpeg: &mut Jpeg, bytes: &[u8], place: [u16; 4]) -> Result<(), TestCaseError> {
    let share = |share: u16, of: u32| (u64::from(share) * u64::from(of) / 65_536) as u32;
    let choose = |width: u32, height: u32| {
        let (left, top) = (share(place[0], width), share(place[1], height));
        Crop { top, left, width: 1 + share(place[2], width - left), height: 1 + share(place[3], height - top) }
    };
    let (wanted, part, channels, region) = pixels(jpeg, bytes, choose);
    let (_, all, _, full) = pixels(jpeg, bytes, whole);
    prop_assert_eq!(cut(part, channels, &region, wanted), cut(all, channels, &full, wanted), "{:?}", wanted);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_rectangle_is_that_of_the_whole_image(recipe in recipe(), place in any::<[u16; 4]>()) {
        check(&mut Jpeg::new().unwrap(), &compress(&recipe), place)?;
    }

    #[test]
    fn restart_markers_and_foreign_encoders_too(place in any::<[u16; 4]>(), which in 0usize..8) {
        let names = ["420-restarts", "cmyk", "rgb", "420-progressive", "422", "gray", "large", "odd"];
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/images");
        let bytes = std::fs::read(folder.join(format!("{}.jpg", names[which]))).unwrap();
        check(&mut Jpeg::new().unwrap(), &bytes, place)?;
    }
}

fn photo() -> Vec<u8> {
    let (size, subsamp, format) = ((97, 140), Subsamp::Sub2x2, PixelFormat::RGB);
    compress(&Recipe { size, subsamp, format, progressive: false, quality: 90, noise: 5 })
}

const TOP: Crop = Crop { top: 3, left: 40, width: 20, height: 20 };

#[test]
fn less_is_decoded_than_the_whole() {
    let bytes = photo();
    let (_, part, _, _) = pixels(&mut Jpeg::new().unwrap(), &bytes, |_, _| TOP);
    assert_eq!(part, Crop { top: 3, left: 16, width: 64, height: 20 });
}

#[test]
fn a_file_that_was_cut_off_is_refused_even_below_the_rectangle() {
    let bytes = photo();
    let mut jpeg = Jpeg::new().unwrap();
    for cut in [bytes.len() - 2, bytes.len() - 40, bytes.len() / 2] {
        let said = jpeg.open(&bytes[..cut]).unwrap_err();
        assert!(said.to_string().contains("Premature end"), "{said}");
    }
}

#[test]
fn damage_is_seen_down_to_the_rectangles_end_and_below_it_does_no_harm() {
    let bytes = photo();
    let mut damaged = bytes.clone();
    let at = bytes.len() * 3 / 4;
    // A marker in the middle of coded data ends it.
    damaged[at..at + 2].copy_from_slice(&[0xff, 0xd7]);
    let mut jpeg = Jpeg::new().unwrap();
    let mut decode = |bytes: &[u8], wanted: Crop| {
        let mut pixels = Vec::new();
        let part = jpeg.open(bytes).unwrap().decode(wanted, &mut pixels, 16)?;
        Ok::<_, super::Said>(cut(part, 3, &pixels, wanted))
    };
    assert_eq!(decode(&damaged, TOP).unwrap(), decode(&bytes, TOP).unwrap());
    let said = decode(&damaged, whole(97, 140)).unwrap_err();
    assert!(said.to_string().contains("Corrupt JPEG data"), "{said}");
    assert_eq!(decode(&bytes, whole(97, 140)).unwrap().len(), 97 * 140 * 3, "the decoder goes on after damage");
}

#[test]
fn a_progressive_image_is_read_to_its_end() {
    let (size, subsamp, format) = ((97, 140), Subsamp::Sub2x2, PixelFormat::RGB);
    let bytes = compress(&Recipe { size, subsamp, format, progressive: true, quality: 90, noise: 5 });
    let mut damaged = bytes.clone();
    let at = bytes.len() - 30;
    damaged[at..at + 2].copy_from_slice(&[0xff, 0xd7]);
    let mut jpeg = Jpeg::new().unwrap();
    let opened = jpeg.open(&damaged).unwrap();
    assert_eq!(opened.colors(), Colors::Rgb);
    let said = opened.decode(TOP, &mut Vec::new(), 16).unwrap_err();
    assert!(said.to_string().contains("Corrupt JPEG data"), "{said}");
}

#[test]
fn no_jpeg_is_an_error() {
    let mut jpeg = Jpeg::new().unwrap();
    for bytes in [&b""[..], b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\0\x10JFIF"] {
        assert!(jpeg.open(bytes).is_err(), "{bytes:?}");
    }
}
