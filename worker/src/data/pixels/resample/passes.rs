//! The two passes over bytes, in fixed point: rows first, then columns, with bytes in between.
//!
//! The first pass works on strips of 16 rows that are turned, so that a pixel's channel is a vector of 16 rows and
//! every weight meets 16 bytes at once; turned back it leaves planes, which the second pass adds up row by row.

use super::{
    lanes::{COLUMNS, Lanes, ROWS},
    taps::{Taps, Weight},
};

/// Pixels of interleaved channels.
#[derive(Debug, Clone, Copy)]
pub struct Pixels<'a> {
    /// From the first byte of the first row; [`ROWS`] bytes follow the last pixel.
    pub bytes: &'a [u8],
    /// Bytes from row to row.
    pub pitch: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// Planes of bytes whose rows are padded, and room to turn strips.
#[derive(Debug, Default)]
pub struct Planes {
    bytes: Vec<u8>,
    stride: usize,
    rows: usize,
    strip: Vec<[u8; ROWS]>,
}

impl Planes {
    /// Makes room for planes of `rows` rows of `width` bytes; what is in them stays undefined.
    fn shape(&mut self, channels: usize, rows: usize, width: usize) {
        self.stride = width.next_multiple_of(COLUMNS);
        self.rows = rows.next_multiple_of(ROWS);
        self.bytes.resize(channels * self.rows * self.stride, 0);
    }
}

/// Resamples every row of `source` by `taps` into planes.
#[inline(always)]
pub fn along_rows<const N: usize>(lanes: impl Lanes, source: Pixels<'_>, taps: &Taps, planes: &mut Planes) {
    planes.shape(N, source.height, taps.len());
    planes.strip.resize((source.width * N).next_multiple_of(ROWS), [0; ROWS]);
    let (stride, plane) = (planes.stride, planes.rows * planes.stride);
    let mut turned = [[0; ROWS]; ROWS];
    for top in (0..source.height).step_by(ROWS) {
        turn(lanes, source, N, top, &mut planes.strip);
        let (pixels, _) = planes.strip.as_chunks::<N>();
        for left in (0..taps.len()).step_by(ROWS) {
            let mut made = [[[0; ROWS]; ROWS]; N];
            for x in left..taps.len().min(left + ROWS) {
                let (first, weights) = Weight::of(taps, x);
                let sums = lanes.weigh(&pixels[first..first + weights.len()], weights);
                for c in 0..N {
                    made[c][x - left] = sums[c];
                }
            }
            for (c, made) in made.iter().enumerate() {
                let mut rows = [&made[0]; ROWS];
                for (row, made) in rows.iter_mut().zip(made) {
                    *row = made;
                }
                lanes.transpose(rows, &mut turned);
                let target = &mut planes.bytes[c * plane + top * stride + left..];
                for (line, row) in turned.iter().zip(target.chunks_mut(stride)) {
                    *row.first_chunk_mut().expect("rows are padded") = *line;
                }
            }
        }
    }
}

/// Turns 16 rows; below the last row it repeats it.
#[inline(always)]
fn turn(lanes: impl Lanes, source: Pixels<'_>, channels: usize, top: usize, strip: &mut [[u8; ROWS]]) {
    let rows: [&[[u8; ROWS]]; ROWS] = std::array::from_fn(|row| {
        let start = (top + row).min(source.height - 1) * source.pitch;
        let bytes = &source.bytes[start..start + (source.width * channels).next_multiple_of(ROWS)];
        bytes.as_chunks().0
    });
    let (squares, _) = strip.as_chunks_mut::<ROWS>();
    for (i, turned) in squares.iter_mut().enumerate() {
        let mut square = [&rows[0][i]; ROWS];
        for (line, row) in square.iter_mut().zip(rows) {
            *line = &row[i];
        }
        lanes.transpose(square, turned);
    }
}

/// Resamples the columns of planes by `taps` into `target`: planes of `taps.len()` rows of `width` bytes, unpadded.
#[inline(always)]
pub fn along_columns(lanes: impl Lanes, planes: &Planes, taps: &Taps, width: usize, target: &mut [u8]) {
    let sources = planes.bytes.chunks_exact(planes.rows * planes.stride);
    for (source, made) in sources.zip(target.chunks_exact_mut(taps.len() * width)) {
        for (y, line) in made.chunks_exact_mut(width).enumerate() {
            let (first, weights) = Weight::of(taps, y);
            for (i, part) in line.chunks_mut(COLUMNS).enumerate() {
                let bytes = lanes.blend(&source[first * planes.stride + i * COLUMNS..], planes.stride, weights);
                part.copy_from_slice(&bytes[..part.len()]);
            }
        }
    }
}
