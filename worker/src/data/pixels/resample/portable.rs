//! The passes' arithmetic without instructions of any one processor.

use super::{
    lanes::{COLUMNS, Lanes, ROWS},
    taps::Weight,
};
use std::marker::PhantomData;

/// Plain loops.
#[derive(Debug, Clone, Copy)]
pub struct Portable<W>(PhantomData<W>);

impl<W> Portable<W> {
    /// For a kind of weights.
    pub fn new() -> Self {
        Self(PhantomData)
    }
}

impl<W: Weight> Lanes for Portable<W> {
    type Weight = W;

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
    fn weigh<const N: usize>(self, pixels: &[[[u8; ROWS]; N]], weights: &[W]) -> [[u8; ROWS]; N] {
        let mut sums = [[half::<W>(); ROWS]; N];
        for (pixel, weight) in pixels.iter().zip(weights) {
            for (sums, bytes) in sums.iter_mut().zip(pixel) {
                add(sums, bytes, (*weight).into());
            }
        }
        sums.map(|lanes| lanes.map(clip::<W>))
    }

    #[inline(never)]
    fn blend(self, rows: &[u8], stride: usize, weights: &[W]) -> [u8; COLUMNS] {
        let mut sums = [half::<W>(); COLUMNS];
        for (row, weight) in rows.chunks(stride).zip(weights) {
            add(&mut sums, row.first_chunk().expect("a row has 32 columns"), (*weight).into());
        }
        sums.map(clip::<W>)
    }
}

/// The weights' sum is near one, so that no sum leaves an i32; Pillow adds up in one, too.
fn add<const L: usize>(sums: &mut [i32; L], bytes: &[u8; L], weight: i32) {
    for (sum, byte) in sums.iter_mut().zip(bytes) {
        *sum = sum.wrapping_add(weight.wrapping_mul(i32::from(*byte)));
    }
}

fn half<W: Weight>() -> i32 {
    1 << (W::FRACTION - 1)
}

fn clip<W: Weight>(sum: i32) -> u8 {
    (sum >> W::FRACTION).clamp(0, 255) as u8
}
