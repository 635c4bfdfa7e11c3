//! Pillow's bicubic resize, byte for byte: fixed-point weights, bytes between the passes, rows before columns. Or the same
//! with weights of 16 bits, which takes half the time and moves some bytes by a level.
//!
//! Pillow up to 12 does rows first always; from 13 on it does first what makes less work, which moves some bytes. Models
//! of CLIP's kind were trained with the former.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod lanes;
mod nearest;
mod passes;
mod portable;
mod taps;
#[cfg(test)]
mod tests;
mod words;

pub use nearest::nearest;
pub use passes::Pixels;
pub use taps::Axis;

use common::recipe::PixelMode;
use lanes::Lanes;
use passes::{Planes, along_columns, along_rows};
use taps::Taps;

/// Bytes that must follow the last pixel of an image that is resampled.
pub const SLACK: usize = lanes::ROWS;

/// Resamples images; one a thread.
#[derive(Debug, Default)]
pub struct PillowResize {
    across: Side,
    down: Side,
    one: Taps,
    planes: Planes,
    between: Vec<u8>,
}

/// The weights of one side, kept while images have the same size.
#[derive(Debug, Default)]
struct Side {
    axis: Option<Axis>,
    taps: Taps,
}

impl Side {
    fn taps(&mut self, axis: &Axis) -> &Taps {
        if self.axis.as_ref() != Some(axis) {
            self.taps.compute(axis);
            self.axis = Some(axis.clone());
        }
        &self.taps
    }
}

impl PillowResize {
    /// Resamples `pixels` of `N` channels, of which `across` and `down` need all, into planes of `target`, one a channel;
    /// with [`PixelMode::Fast`] by weights of 16 bits.
    ///
    /// # Panics
    /// When a size does not fit.
    pub fn resize<const N: usize>(
        &mut self,
        mode: PixelMode,
        pixels: Pixels<'_>,
        (across, down): (&Axis, &Axis),
        target: &mut [u8],
    ) {
        assert_eq!((pixels.width, pixels.height), (across.needed().len(), down.needed().len()));
        assert_eq!(target.len(), N * across.window.len() * down.window.len());
        let axes = (across, down);
        #[cfg(target_arch = "x86_64")]
        if let Some(lanes) = avx2::Avx2::find() {
            return match mode {
                PixelMode::PillowExact => self.in_lanes::<N>(lanes, pixels, axes, target),
                PixelMode::Fast => self.in_lanes::<N>(lanes.narrow(), pixels, axes, target),
            };
        }
        match mode {
            PixelMode::PillowExact => self.in_lanes::<N>(portable::Portable::<i32>::new(), pixels, axes, target),
            PixelMode::Fast => self.in_lanes::<N>(portable::Portable::<i16>::new(), pixels, axes, target),
        }
    }

    fn in_lanes<const N: usize>(
        &mut self,
        lanes: impl Lanes,
        pixels: Pixels<'_>,
        (across, down): (&Axis, &Axis),
        target: &mut [u8],
    ) {
        let width = across.window.len();
        let (across_taps, down_taps) = (self.across.taps(across), self.down.taps(down));
        let planes = &mut self.planes;
        if !columns_first(across, down) {
            lanes.run(
                #[inline(always)]
                || along_rows::<N>(lanes, pixels, across_taps, planes),
            );
            lanes.run(
                #[inline(always)]
                || along_columns(lanes, planes, down_taps, width, target),
            );
            return;
        }
        // The planes of the first pass, one below the other, are an image of one channel for the second.
        let (columns, rows) = (pixels.width, down.window.len());
        let whole = |side: usize| Axis { inputs: side as u32, outputs: side as u32, window: 0..side as u32 };
        self.one.compute(&whole(columns));
        along_rows::<N>(lanes, pixels, &self.one, planes);
        self.between.resize(N * columns * rows + SLACK, 0);
        along_columns(lanes, planes, down_taps, columns, &mut self.between[..N * columns * rows]);
        let stacked = Pixels { bytes: &self.between, pitch: columns, width: columns, height: N * rows };
        along_rows::<1>(lanes, stacked, across_taps, planes);
        self.one.compute(&whole(N * rows));
        along_columns(lanes, planes, &self.one, width, target);
    }

    /// Resamples 16 bits of gray, lower byte first, into 16 bits.
    pub fn resize_words(&mut self, pixels: Pixels<'_>, across: &Axis, down: &Axis) -> Vec<u16> {
        let Pixels { bytes, pitch, width, height } = pixels;
        let row = |row: usize| bytes[row * pitch..][..2 * width].chunks_exact(2);
        let words: Vec<u16> = (0..height).flat_map(row).map(|word| u16::from_le_bytes([word[0], word[1]])).collect();
        let (across_taps, down_taps) = (self.across.taps(across), self.down.taps(down));
        let (columns, rows) = (across.window.len(), down.window.len());
        // Each pass leaves its lines side by side, so the second pass's come out turned.
        if columns_first(across, down) {
            let turned = words::along(&words, width, down_taps, |column, i| i * width + column);
            words::along(&turned, rows, across_taps, |row, i| i * rows + row)
        } else {
            let made = words::along(&words, height, across_taps, |row, i| row * width + i);
            let turned = words::along(&made, columns, down_taps, |column, i| i * columns + column);
            (0..rows * columns).map(|at| turned[at % columns * rows + at / columns]).collect()
        }
    }
}

/// Pillow does the columns of an image first that is more than a hundred times as high as it is wide and shrinks.
fn columns_first(across: &Axis, down: &Axis) -> bool {
    u64::from(down.inputs) > 100 * u64::from(across.inputs) && down.outputs < down.inputs
}
