//! Bytes of the whole image path beside Pillow's and open_clip's: tests/golden/images/make_golden.py.

use crate::data::pixels::{
    crop::Crop,
    decode::Decoder,
    geometry::Geometry,
    picture::{Mode, Picture},
    random::Draws,
    resample::Axis,
    transform::{Resampler, Transform},
};
use crate::data::tests::fixtures;
use common::recipe::{ConvertToRgb, PixelMode};
use proptest::prelude::*;
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Golden {
    eval: Vec<Case>,
    train: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    image: String,
    size: u32,
    crop: Option<Crop>,
    before: String,
    after: String,
}

/// Evaluation draws nothing.
struct Nothing;

impl Draws for Nothing {
    fn uniform(&mut self, _: f64, _: f64) -> f64 {
        panic!("a number was drawn")
    }

    fn below(&mut self, _: u32) -> u32 {
        panic!("a number was drawn")
    }
}

fn geometry(case: &Case, size: (u32, u32)) -> Geometry {
    let axis = |inputs| Axis { inputs, outputs: case.size, window: 0..case.size };
    match case.crop {
        Some(crop) => Geometry { crop, across: axis(crop.width), down: axis(crop.height) },
        None => Geometry::new(&Transform::Eval, size, &mut Nothing, case.size).unwrap(),
    }
}

/// What an image's cases came to.
#[derive(Default)]
struct Row {
    /// Cases of the exact mode with other bytes than Pillow's, of how many.
    wrong: usize,
    cases: usize,
    /// Bytes of the fast mode that differ, by how much at most, of how many.
    differ: usize,
    most: u8,
    sum: usize,
    bytes: usize,
}

struct Path {
    decoder: Decoder,
    resampler: Resampler,
}

impl Path {
    fn make(&mut self, case: &Case, convert: ConvertToRgb, mode: PixelMode) -> Vec<u8> {
        let bytes = std::fs::read(fixtures().join("golden/images").join(&case.image)).unwrap();
        let mut chosen = None;
        let picture =
            self.decoder.decode_part(&bytes, convert, |size| Ok(chosen.insert(geometry(case, size)).needed())).unwrap();
        let mut pixels = vec![7; 3 * case.size as usize * case.size as usize];
        self.resampler.apply(mode, &chosen.unwrap(), picture, &mut pixels);
        pixels
    }
}

/// Prints, for each image, the share of bytes that differ from Pillow's, and the largest difference; demands none of the
/// exact mode. Its bytes are Pillow's by their digest, so that the fast mode's are compared with them.
#[test]
fn pillow_exact_is_open_clips_preprocessing_and_fast_is_near() {
    let golden: Golden =
        serde_json::from_slice(&std::fs::read(fixtures().join("golden/images/golden.json")).unwrap()).unwrap();
    assert!(golden.train.len() > 100 && golden.eval.len() > 50);
    let mut path = Path { decoder: Decoder::default(), resampler: Resampler::default() };
    let mut table: BTreeMap<(String, &str), Row> = BTreeMap::new();
    for (part, case) in golden.eval.iter().map(|case| ("eval", case)).chain(golden.train.iter().map(|c| ("train", c))) {
        for (convert, digest) in [(ConvertToRgb::BeforeResize, &case.before), (ConvertToRgb::AfterResize, &case.after)]
        {
            let exact = path.make(case, convert, PixelMode::PillowExact);
            let fast = path.make(case, convert, PixelMode::Fast);
            let row = table.entry((case.image.clone(), part)).or_default();
            row.wrong += usize::from(blake3::hash(&exact).to_hex().as_str() != digest);
            row.cases += 1;
            for (fast, exact) in fast.iter().zip(&exact) {
                row.differ += usize::from(fast != exact);
                row.most = row.most.max(fast.abs_diff(*exact));
                row.sum += usize::from(fast.abs_diff(*exact));
            }
            row.bytes += fast.len();
        }
    }
    println!(
        "{:24} {:6} {:>12} {:>12} {:>12} {:>12}",
        "image", "", "exact: wrong", "fast: differ", "by at most", "on average"
    );
    for ((image, part), Row { wrong, cases, differ, most, sum, bytes }) in &table {
        let (percent, mean) = (100.0 * *differ as f64 / *bytes as f64, *sum as f64 / *bytes as f64);
        println!("{image:24} {part:6} {:>12} {percent:>10.2} % {most:>12} {mean:>12.3}", format!("{wrong} of {cases}"));
    }
    let wrong: Vec<_> =
        table.iter().filter(|(_, row)| row.wrong > 0).map(|(key, row)| (key, row.wrong, row.cases)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    for ((image, _), row) in &table {
        // Where alpha is nearly nothing a level of it is many of the colour.
        let near = row.most <= 2 || image.contains("alpha") || image.contains("rgba") || image.contains("transparent");
        assert!(near && row.sum as f64 <= 0.03 * row.bytes as f64, "the fast mode strays on {image}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A crop that came out longer than the image by a rounding was an error once, and the image counted as broken.
    #[test]
    fn fast_takes_images_and_crops_of_every_size(
        width in 1u32..500, height in 1u32..500, size in 1u32..100, place in any::<[u8; 4]>(), gray in any::<bool>()
    ) {
        let mode = if gray { Mode::Gray } else { Mode::Rgb };
        let mut picture = Picture::default();
        picture.fill((width, height), mode, |bytes| {
            bytes.extend((0..width * height * mode.bytes() as u32).map(|i| (i * 7 / 11 % 251) as u8));
        });
        let part = |start: u8, length: u8, of: u32| {
            let start = u32::from(start) * of / 256;
            (start, 1 + u32::from(length) * (of - start) / 257)
        };
        let ((left, w), (top, h)) = (part(place[0], place[1], width), part(place[2], place[3], height));
        let axis = |inputs| Axis { inputs, outputs: size, window: 0..size };
        let crop = Crop { top, left, width: w, height: h };
        let train = Geometry { crop, across: axis(w), down: axis(h) };
        let eval = Geometry::new(&Transform::Eval, (width, height), &mut Nothing, size).unwrap();
        let mut resampler = Resampler::default();
        for geometry in [train, eval] {
            let [mut fast, mut exact] = [0, 1].map(|_| vec![0; 3 * (size * size) as usize]);
            resampler.apply(PixelMode::Fast, &geometry, &picture, &mut fast);
            resampler.apply(PixelMode::PillowExact, &geometry, &picture, &mut exact);
            let most = fast.iter().zip(&exact).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            prop_assert!(most <= 2, "{most} levels, {geometry:?}");
        }
    }
}
