//! The two kinds of arithmetic agree; a window is a part of the whole.

use super::{Axis, PillowResize, Pixels, SLACK, portable::Portable};
use common::recipe::PixelMode;
use proptest::prelude::*;

fn image(width: usize, height: usize, channels: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = vec![0; width * height * channels + SLACK];
    for byte in &mut bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // Mostly black and white, which overshoots on both sides.
        *byte = ((state >> 57) as u8).wrapping_mul(if state >> 63 == 0 { 255 } else { 3 });
    }
    bytes
}

fn axis(inputs: usize, outputs: u32) -> Axis {
    Axis { inputs: inputs as u32, outputs, window: 0..outputs }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn plain_loops_and_vectors_give_the_same_bytes(
        width in 1usize..90, height in 1usize..90, columns in 1u32..70, rows in 1u32..70, seed in any::<u64>()
    ) {
        let bytes = image(width, height, 3, seed);
        let pixels = Pixels { bytes: &bytes, pitch: 3 * width, width, height };
        let (across, down) = (axis(width, columns), axis(height, rows));
        let (mut plain, mut vectors) = (vec![1; 3 * (columns * rows) as usize], vec![2; 3 * (columns * rows) as usize]);
        let mut resize = PillowResize::default();
        resize.in_lanes::<3>(Portable::<i32>::new(), pixels, (&across, &down), &mut plain);
        resize.resize::<3>(PixelMode::PillowExact, pixels, (&across, &down), &mut vectors);
        prop_assert_eq!(&plain, &vectors);
        resize.in_lanes::<3>(Portable::<i16>::new(), pixels, (&across, &down), &mut plain);
        prop_assert!(plain.iter().zip(&vectors).all(|(narrow, exact)| narrow.abs_diff(*exact) <= 2));
        resize.resize::<3>(PixelMode::Fast, pixels, (&across, &down), &mut vectors);
        prop_assert_eq!(plain, vectors);
    }

    #[test]
    fn a_window_made_of_what_it_needs_is_that_of_the_whole(
        width in 1usize..90, height in 1usize..200, columns in 1u32..70, rows in 1u32..70, place in any::<[u8; 4]>()
    ) {
        let part = |start: u8, length: u8, of: u32| {
            let start = u32::from(start) * of / 256;
            start..start + 1 + u32::from(length) * (of - start) / 257
        };
        let bytes = image(width, height, 1, 9);
        let whole = Pixels { bytes: &bytes, pitch: width, width, height };
        let (across, down) = (axis(width, columns), axis(height, rows));
        let mut resize = PillowResize::default();
        let mut all = vec![0; (columns * rows) as usize];
        resize.resize::<1>(PixelMode::PillowExact, whole, (&across, &down), &mut all);
        let across = Axis { window: part(place[0], place[1], columns), ..across };
        let down = Axis { window: part(place[2], place[3], rows), ..down };
        let (left, top) = (across.needed(), down.needed());
        let source = Pixels {
            bytes: &bytes[top.start as usize * width + left.start as usize..],
            pitch: width,
            width: left.len(),
            height: top.len(),
        };
        let mut made = vec![0; across.window.len() * down.window.len()];
        resize.resize::<1>(PixelMode::PillowExact, source, (&across, &down), &mut made);
        let row = |row: u32| {
            let first = row * columns;
            &all[(first + across.window.start) as usize..(first + across.window.end) as usize]
        };
        let expected: Vec<u8> = down.window.clone().flat_map(row).copied().collect();
        prop_assert_eq!(made, expected);
    }
}
