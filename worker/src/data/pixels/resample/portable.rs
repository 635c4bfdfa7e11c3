//! The passes' arithmetic without instructions of any one processor.

use super::{
    lanes::{COLUMNS, Lanes, ROWS},
    taps::FRACTION,
};

const HALF: i32 = 1 << (FRACTION - 1);

/// Plain loops.
#[derive(Debug, Clone, Copy)]
pub struct Portable;

impl Lanes for Portable {
    fn run(self, work: impl FnOnce()) {
        work();
    }

    #[inline(never)]
    fn transpose(self, square: [&[u8; ROWS]; ROWS], turned: &mut [[u8; ROWS]; ROWS]) {
        for (column, turned) in turned.iter_mut().enumerate() {
            for (byte, row) in turned.iter_mut().zip(square) {
                *byte = row[column];
            }
        }
    }

    #[inline(never)]
    fn weigh<const N: usize>(self, pixels: &[[[u8; ROWS]; N]], weights: &[i32]) -> [[u8; ROWS]; N] {
        let mut sums = [[HALF; ROWS]; N];
        for (pixel, weight) in pixels.iter().zip(weights) {
            for (sums, bytes) in sums.iter_mut().zip(pixel) {
                add(sums, bytes, *weight);
            }
        }
        sums.map(|lanes| lanes.map(clip))
    }

    #[inline(never)]
    fn blend(self, rows: &[u8], stride: usize, weights: &[i32]) -> [u8; COLUMNS] {
        let mut sums = [HALF; COLUMNS];
        for (row, weight) in rows.chunks(stride).zip(weights) {
            add(&mut sums, row.first_chunk().expect("a row has 32 columns"), *weight);
        }
        sums.map(clip)
    }
}

/// The weights' sum is near one, so that no sum leaves an i32; Pillow adds up in one, too.
fn add<const L: usize>(sums: &mut [i32; L], bytes: &[u8; L], weight: i32) {
    for (sum, byte) in sums.iter_mut().zip(bytes) {
        *sum = sum.wrapping_add(weight.wrapping_mul(i32::from(*byte)));
    }
}

fn clip(sum: i32) -> u8 {
    (sum >> FRACTION).clamp(0, 255) as u8
}
