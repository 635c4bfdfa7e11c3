//! Images as rows of patches, and what belongs to the rows that are kept. All vision towers begin with this.
//!
//! Shapes: B batch, C channels, H and W pixels, G patches a side, N rows of a table, K patches kept, D width.

use tch::{Kind, Tensor};

/// Red, green, blue.
pub(super) const CHANNELS: i64 = 3;

/// Cuts pixels into patches of `patch` pixels a side, row by row of the grid: [B, G², C·patch²], or [B, K, C·patch²] of the
/// patches `kept_BK`. A convolution whose stride is its kernel is one matrix product over these rows.
pub(super) fn cut(pixels_BCHW: &Tensor, patch: i64, kept_BK: Option<&Tensor>) -> Tensor {
    let (batch, channels, height, _) = pixels_BCHW.size4().expect("pixels have four dimensions");
    let grid = height / patch;
    let patches = pixels_BCHW.view([batch, channels, grid, patch, grid, patch]).permute([0, 2, 4, 1, 3, 5]).reshape([
        batch,
        grid * grid,
        channels * patch * patch,
    ]);
    match kept_BK {
        None => patches,
        Some(kept_BK) => {
            let rows = kept_BK.unsqueeze(-1).expand([-1, -1, patches.size()[2]], false);
            patches.gather(1, &rows, false)
        }
    }
}

/// The rows of a table [N, D] for the tokens of an image, whose first `class` rows are of class tokens: [1, N, D], or
/// [B, class + K, D] of the patches `kept_BK`.
pub(super) fn rows(table_ND: &Tensor, class: i64, kept_BK: Option<&Tensor>) -> Tensor {
    let Some(kept_BK) = kept_BK else { return table_ND.unsqueeze(0) };
    let batch = kept_BK.size()[0];
    let of_class = Tensor::arange(class, (Kind::Int64, kept_BK.device())).expand([batch, class], false);
    let places = Tensor::cat(&[of_class, kept_BK + class], 1);
    table_ND.index_select(0, &places.flatten(0, -1)).view([batch, -1, table_ND.size()[1]])
}
