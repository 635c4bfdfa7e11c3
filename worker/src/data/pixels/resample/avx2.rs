//! The passes' arithmetic in vectors of 256 bits, for x86-64 of 2013 and later. Loops and no `map` over arrays: the latter
//! becomes a function of its own, which is compiled without these instructions.

#![allow(clippy::needless_range_loop, reason = "several arrays are walked together")]

use super::{
    lanes::{COLUMNS, Lanes, ROWS},
    taps::Weight,
};
use bytemuck::cast;
use pulp::x86::V3;
use std::arch::x86_64::{__m128i, __m256i};

/// Proof that the processor has AVX2.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(V3);

/// The same, for weights of 16 bits.
#[derive(Debug, Clone, Copy)]
pub struct Narrow(Avx2);

impl Avx2 {
    /// Absent where the processor has no AVX2.
    pub fn find() -> Option<Self> {
        V3::try_new().map(Self)
    }

    /// For weights of 16 bits.
    pub fn narrow(self) -> Narrow {
        Narrow(self)
    }

    #[inline(always)]
    fn half<W: Weight>(self) -> __m256i {
        self.0.avx._mm256_set1_epi32(1 << (W::FRACTION - 1))
    }

    /// `sum + weight * byte` of eight bytes.
    #[inline(always)]
    fn add(self, sum: __m256i, weight: __m256i, bytes: [u8; 8]) -> __m256i {
        let bytes: __m128i = cast([u64::from_le_bytes(bytes), 0]);
        let product = self.0.avx2._mm256_mullo_epi32(weight, self.0.avx2._mm256_cvtepu8_epi32(bytes));
        self.0.avx2._mm256_add_epi32(sum, product)
    }

    /// `sum + first * a + second * b` of sixteen bytes each; `weights` holds both weights in each of its numbers.
    #[inline(always)]
    fn add_two(self, sums: [__m256i; 2], weights: __m256i, [a, b]: [__m128i; 2]) -> [__m256i; 2] {
        let mixed = [self.0.sse2._mm_unpacklo_epi8(a, b), self.0.sse2._mm_unpackhi_epi8(a, b)];
        let added = |i: usize| {
            let words = self.0.avx2._mm256_cvtepu8_epi16(mixed[i]);
            self.0.avx2._mm256_add_epi32(sums[i], self.0.avx2._mm256_madd_epi16(words, weights))
        };
        [added(0), added(1)]
    }

    /// Two weights of 16 bits in each number.
    #[inline(always)]
    fn two(self, weights: [i16; 2]) -> __m256i {
        self.0.avx._mm256_set1_epi32(cast(weights))
    }

    /// Sixteen sums as bytes; packing saturates, which clips to 0 and 255.
    #[inline(always)]
    fn clip<const FRACTION: i32>(self, [low, high]: [__m256i; 2]) -> __m128i {
        let words = |sums| {
            let shifted = self.0.avx2._mm256_srai_epi32::<FRACTION>(sums);
            let [low, high]: [__m128i; 2] = cast(shifted);
            self.0.sse2._mm_packs_epi32(low, high)
        };
        self.0.sse2._mm_packus_epi16(words(low), words(high))
    }

    #[inline(always)]
    fn turn(self, square: [&[u8; ROWS]; ROWS], turned: &mut [[u8; ROWS]; ROWS]) {
        let mut lanes: [__m128i; ROWS] = [cast([0u8; ROWS]); ROWS];
        for i in 0..ROWS {
            lanes[i] = cast(*square[i]);
        }
        // Each round interleaves row i with row i + 8: it turns the eight bits of (row, column) by one place.
        for _ in 0..4 {
            let before = lanes;
            for i in 0..ROWS / 2 {
                lanes[2 * i] = self.0.sse2._mm_unpacklo_epi8(before[i], before[i + 8]);
                lanes[2 * i + 1] = self.0.sse2._mm_unpackhi_epi8(before[i], before[i + 8]);
            }
        }
        for i in 0..ROWS {
            turned[i] = cast(lanes[i]);
        }
    }
}

impl Lanes for Avx2 {
    type Weight = i32;

    #[inline(always)]
    fn run(self, work: impl FnOnce()) {
        self.0.vectorize(work);
    }

    #[inline(always)]
    fn transpose(self, square: [&[u8; ROWS]; ROWS], turned: &mut [[u8; ROWS]; ROWS]) {
        self.turn(square, turned);
    }

    #[inline(always)]
    fn weigh<const N: usize>(self, pixels: &[[[u8; ROWS]; N]], weights: &[i32]) -> [[u8; ROWS]; N] {
        let mut sums = [[self.half::<i32>(); 2]; N];
        for (pixel, weight) in pixels.iter().zip(weights) {
            let weight = self.0.avx._mm256_set1_epi32(*weight);
            for c in 0..N {
                let [low, high]: [[u8; 8]; 2] = cast(pixel[c]);
                sums[c] = [self.add(sums[c][0], weight, low), self.add(sums[c][1], weight, high)];
            }
        }
        let mut bytes = [[0; ROWS]; N];
        for c in 0..N {
            bytes[c] = cast(self.clip::<{ i32::FRACTION as i32 }>(sums[c]));
        }
        bytes
    }

    #[inline(always)]
    fn blend(self, rows: &[u8], stride: usize, weights: &[i32]) -> [u8; COLUMNS] {
        let mut sums = [[self.half::<i32>(); 2]; 2];
        for (row, weight) in rows.chunks(stride).zip(weights) {
            let weight = self.0.avx._mm256_set1_epi32(*weight);
            let bytes: [[[u8; 8]; 2]; 2] = cast(*row.first_chunk::<COLUMNS>().expect("a row has 32 columns"));
            for i in 0..2 {
                sums[i] = [self.add(sums[i][0], weight, bytes[i][0]), self.add(sums[i][1], weight, bytes[i][1])];
            }
        }
        let [left, right] = sums;
        cast([self.clip::<{ i32::FRACTION as i32 }>(left), self.clip::<{ i32::FRACTION as i32 }>(right)])
    }
}

impl Lanes for Narrow {
    type Weight = i16;

    #[inline(always)]
    fn run(self, work: impl FnOnce()) {
        self.0.run(work);
    }

    #[inline(always)]
    fn transpose(self, square: [&[u8; ROWS]; ROWS], turned: &mut [[u8; ROWS]; ROWS]) {
        self.0.turn(square, turned);
    }

    #[inline(always)]
    fn weigh<const N: usize>(self, pixels: &[[[u8; ROWS]; N]], weights: &[i16]) -> [[u8; ROWS]; N] {
        let mut sums = [[self.0.half::<i16>(); 2]; N];
        let (weight_pairs, weight_rest) = weights.as_chunks::<2>();
        let (pixel_pairs, pixel_rest) = pixels.as_chunks::<2>();
        for ([a, b], weights) in pixel_pairs.iter().zip(weight_pairs) {
            let weights = self.0.two(*weights);
            for c in 0..N {
                sums[c] = self.0.add_two(sums[c], weights, [cast(a[c]), cast(b[c])]);
            }
        }
        for (a, weight) in pixel_rest.iter().zip(weight_rest) {
            let weights = self.0.two([*weight, 0]);
            for c in 0..N {
                sums[c] = self.0.add_two(sums[c], weights, [cast(a[c]); 2]);
            }
        }
        let mut bytes = [[0; ROWS]; N];
        for c in 0..N {
            bytes[c] = cast(self.0.clip::<{ i16::FRACTION as i32 }>(sums[c]));
        }
        bytes
    }

    #[inline(always)]
    fn blend(self, rows: &[u8], stride: usize, weights: &[i16]) -> [u8; COLUMNS] {
        let mut sums = [[self.0.half::<i16>(); 2]; 2];
        let mut lines = rows.chunks(stride);
        let mut columns = || -> [__m128i; 2] {
            let line = lines.next().and_then(|line| line.first_chunk::<COLUMNS>());
            cast(*line.expect("there is a row of 32 columns for each weight"))
        };
        let (pairs, rest) = weights.as_chunks::<2>();
        for weights in pairs {
            let (a, b, weights) = (columns(), columns(), self.0.two(*weights));
            for i in 0..2 {
                sums[i] = self.0.add_two(sums[i], weights, [a[i], b[i]]);
            }
        }
        for weight in rest {
            let (a, weights) = (columns(), self.0.two([*weight, 0]));
            for i in 0..2 {
                sums[i] = self.0.add_two(sums[i], weights, [a[i]; 2]);
            }
        }
        let [left, right] = sums;
        cast([self.0.clip::<{ i16::FRACTION as i32 }>(left), self.0.clip::<{ i16::FRACTION as i32 }>(right)])
    }
}
