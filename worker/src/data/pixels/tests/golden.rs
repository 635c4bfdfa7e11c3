//! Pixels and crops beside those of Pillow and torchvision: tests/golden/data/make_golden.py.

use crate::data::pixels::{
    crop::{Crop, random_crop},
    decode::Decoder,
    geometry::Geometry,
    picture::Mode,
    random::Draws,
    transform::{Resampler, Transform},
};
use crate::data::tests::{fixtures, image};
use common::recipe::{Augment, PixelMode};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    decode: Vec<Decoded>,
    crop: Vec<Cropped>,
    eval: Vec<Cropped>,
    params: Vec<Params>,
}

#[derive(Deserialize)]
struct Pixels {
    width: u32,
    height: u32,
    offset: usize,
    length: usize,
}

#[derive(Deserialize)]
struct Decoded {
    image: String,
    pixels: Pixels,
}

#[derive(Deserialize)]
struct Cropped {
    image: String,
    size: u32,
    crop: Option<Crop>,
    pixels: Pixels,
}

#[derive(Deserialize)]
struct Params {
    width: u32,
    height: u32,
    scale: (f64, f64),
    ratio: (f64, f64),
    drawn: Vec<f64>,
    crop: Crop,
}

fn golden() -> (Golden, Vec<u8>) {
    let folder = fixtures().join("golden/data");
    let golden = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    (golden, std::fs::read(folder.join("pixels.bin")).unwrap())
}

/// Gives recorded numbers.
struct Recorded(std::vec::IntoIter<f64>);

impl Draws for Recorded {
    fn uniform(&mut self, low: f64, high: f64) -> f64 {
        let drawn = self.0.next().expect("as many numbers are drawn as torchvision drew");
        assert!((low - 1e-6..=high + 1e-6).contains(&drawn), "{drawn} is not within {low} to {high}");
        drawn
    }

    fn below(&mut self, bound: u32) -> u32 {
        let drawn = self.0.next().expect("as many numbers are drawn as torchvision drew") as u32;
        assert!(drawn < bound);
        drawn
    }
}

/// The largest difference, and the share of bytes that differ.
fn difference(made: &[u8], expected: &[u8]) -> (u8, f64) {
    assert_eq!(made.len(), expected.len());
    let differences = made.iter().zip(expected).map(|(a, b)| a.abs_diff(*b));
    let share = differences.clone().filter(|d| *d > 0).count() as f64 / made.len() as f64;
    (differences.max().unwrap_or(0), share)
}

#[test]
fn images_decode_as_with_pillow() {
    let (golden, expected) = golden();
    let mut decoder = Decoder::default();
    assert!(golden.decode.len() > 15);
    for case in golden.decode {
        let rgb = decoder.decode(&image(&case.image)).unwrap();
        assert_eq!((rgb.width, rgb.height), (case.pixels.width, case.pixels.height), "{}", case.image);
        let expected = &expected[case.pixels.offset..][..case.pixels.length];
        let made = match rgb.mode {
            Mode::Gray => rgb.pixels().iter().flat_map(|gray| [*gray; 3]).collect(),
            _ => rgb.pixels().to_vec(),
        };
        let (largest, share) = difference(&made, expected);
        println!("{}: largest difference {largest}, {:.3} % differ", case.image, 100.0 * share);
        assert_eq!(largest, 0, "{}", case.image);
    }
}

#[test]
fn crops_are_torchvisions_given_its_draws() {
    let (golden, _) = golden();
    assert!(golden.params.len() > 100);
    for case in golden.params {
        let augment = Augment { scale: case.scale, ratio: case.ratio };
        let mut draws = Recorded(case.drawn.clone().into_iter());
        let crop = random_crop(case.width, case.height, &augment, &mut draws);
        assert_eq!(crop, case.crop, "{} x {}, {:?}", case.width, case.height, case.drawn);
        assert_eq!(draws.0.next(), None, "torchvision drew more numbers");
    }
}

#[test]
fn resized_crops_are_pillows() {
    let (golden, expected) = golden();
    let (mut decoder, mut resampler) = (Decoder::default(), Resampler::default());
    let mut worst = 0;
    for case in golden.crop.iter().chain(&golden.eval) {
        let bytes = image(&case.image);
        let rgb = decoder.decode(&bytes).unwrap();
        // Draws that lead to the crop: its area and ratio, then its place.
        let (transform, mut draws) = match case.crop {
            None => (Transform::Eval, Recorded(vec![].into_iter())),
            Some(crop) => {
                let (w, h) = (f64::from(crop.width), f64::from(crop.height));
                let area = w * h / (f64::from(rgb.width) * f64::from(rgb.height));
                let augment = Augment { scale: (0.0, 1.0), ratio: (0.01, 100.0) };
                let drawn = vec![area, (w / h).ln(), crop.top.into(), crop.left.into()];
                (Transform::Train { augment }, Recorded(drawn.into_iter()))
            }
        };
        let size = case.size as usize;
        let mut planes = vec![0; 3 * size * size];
        let geometry = Geometry::new(&transform, (rgb.width, rgb.height), &mut draws, case.size).unwrap();
        resampler.apply(PixelMode::PillowExact, &geometry, rgb, &mut planes);
        let made: Vec<u8> = (0..size * size).flat_map(|at| [0, 1, 2].map(|c| planes[c * size * size + at])).collect();
        let expected = &expected[case.pixels.offset..][..case.pixels.length];
        let (largest, share) = difference(&made, expected);
        println!("{} to {size}: largest difference {largest}, {:.3} % differ", case.image, 100.0 * share);
        worst = worst.max(largest);
    }
    assert_eq!(worst, 0);
}
