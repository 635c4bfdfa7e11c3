//! The passes' arithmetic in vectors of 256 bits, for x86-64 of 2013 and later.

use super::{
    lanes::{COLUMNS, Lanes, ROWS},
    taps::FRACTION,
};
use bytemuck::cast;
use pulp::x86::V3;
use std::arch::x86_64::{__m128i, __m256i};

const HALF: i32 = 1 << (FRACTION - 1);

/// Proof that the processor has AVX2.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(V3);

impl Avx2 {
    /// Absent where the processor has no AVX2.
    pub fn find() -> Option<Self> {
        V3::try_new().map(Self)
    }

    /// `sum + weight * byte` of eight bytes.
    #[inline(always)]
    fn add(self, sum: __m256i, weight: __m256i, bytes: [u8; 8]) -> __m256i {
        let bytes: __m128i = cast([u64::from_le_bytes(bytes), 0]);
        let product = self.0.avx2._mm256_mullo_epi32(weight, self.0.avx2._mm256_cvtepu8_epi32(bytes));
        self.0.avx2._mm256_add_epi32(sum, product)
    }

    /// Sixteen sums as bytes; packing saturates, which clips to 0 and 255.
    #[inline(always)]
    fn clip(self, low: __m256i, high: __m256i) -> __m128i {
        let words = |sums| {
            let shifted = self.0.avx2._mm256_srai_epi32::<{ FRACTION as i32 }>(sums);
            let [low, high]: [__m128i; 2] = cast(shifted);
            self.0.sse2._mm_packs_epi32(low, high)
        };
        self.0.sse2._mm_packus_epi16(words(low), words(high))
    }
}

impl Lanes for Avx2 {
    #[inline(always)]
    fn run(self, work: impl FnOnce()) {
        self.0.vectorize(work);
    }

    #[inline(always)]
    fn transpose(self, square: [&[u8; ROWS]; ROWS], turned: &mut [[u8; ROWS]; ROWS]) {
        let mut lanes: [__m128i; ROWS] = square.map(|row| cast(*row));
        // Each round interleaves row i with row i + 8: it turns the eight bits of (row, column) by one place.
        for _ in 0..4 {
            let before = lanes;
            for i in 0..ROWS / 2 {
                lanes[2 * i] = self.0.sse2._mm_unpacklo_epi8(before[i], before[i + 8]);
                lanes[2 * i + 1] = self.0.sse2._mm_unpackhi_epi8(before[i], before[i + 8]);
            }
        }
        *turned = lanes.map(cast);
    }

    #[inline(always)]
    fn weigh<const N: usize>(self, pixels: &[[[u8; ROWS]; N]], weights: &[i32]) -> [[u8; ROWS]; N] {
        let mut sums = [[self.0.avx._mm256_set1_epi32(HALF); 2]; N];
        for (pixel, weight) in pixels.iter().zip(weights) {
            let weight = self.0.avx._mm256_set1_epi32(*weight);
            for c in 0..N {
                let [low, high]: [[u8; 8]; 2] = cast(pixel[c]);
                sums[c] = [self.add(sums[c][0], weight, low), self.add(sums[c][1], weight, high)];
            }
        }
        sums.map(|[low, high]| cast(self.clip(low, high)))
    }

    #[inline(always)]
    fn blend(self, rows: &[u8], stride: usize, weights: &[i32]) -> [u8; COLUMNS] {
        let mut sums = [self.0.avx._mm256_set1_epi32(HALF); 4];
        for (row, weight) in rows.chunks(stride).zip(weights) {
            let weight = self.0.avx._mm256_set1_epi32(*weight);
            let bytes: [[u8; 8]; 4] = cast(*row.first_chunk::<COLUMNS>().expect("a row has 32 columns"));
            for i in 0..4 {
                sums[i] = self.add(sums[i], weight, bytes[i]);
            }
        }
        cast([self.clip(sums[0], sums[1]), self.clip(sums[2], sums[3])])
    }
}
