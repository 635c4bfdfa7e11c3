//! What a resampling pass needs of a processor.

use super::taps::Weight;

/// Rows that are weighed at once, and the side of the squares that are turned.
pub const ROWS: usize = 16;
/// Columns that are added up at once.
pub const COLUMNS: usize = 32;

/// The arithmetic of the passes, in vectors of one kind. All kinds of one weight give the same bytes.
pub trait Lanes: Copy {
    /// What inputs are weighed by.
    type Weight: Weight;

    /// Runs `work` so that the compiler may use the vectors' instructions in all that is inlined into it.
    fn run(self, work: impl FnOnce());
    /// 16 x 16 bytes: rows become columns.
    fn transpose(self, square: [&[u8; ROWS]; ROWS], turned: &mut [[u8; ROWS]; ROWS]);
    /// The weighted sum of pixels of `N` channels, of 16 rows at once.
    fn weigh<const N: usize>(self, pixels: &[[[u8; ROWS]; N]], weights: &[Self::Weight]) -> [[u8; ROWS]; N];
    /// The weighted sum of 32 columns of rows that are `stride` bytes apart.
    fn blend(self, rows: &[u8], stride: usize, weights: &[Self::Weight]) -> [u8; COLUMNS];
}
