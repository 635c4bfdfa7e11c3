//! Ranges as pieces of blocks.

use std::ops::Range;

/// What a part of a read takes from one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The block's number in its object.
    pub block: u64,
    /// The bytes in the block.
    pub from: Range<usize>,
    /// Which part of the read they belong to.
    pub part: usize,
    /// Where they belong in it.
    pub at: usize,
}

/// Cuts the parts of a read, (offset, length) each, at the borders of blocks of `block` bytes. Sorted by block.
pub fn pieces(parts: impl IntoIterator<Item = (u64, usize)>, block: u64) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (part, (offset, length)) in parts.into_iter().enumerate() {
        let mut at = 0;
        while at < length {
            let place = offset + at as u64;
            let inside = (place % block) as usize;
            let count = (length - at).min(block as usize - inside);
            pieces.push(Piece { block: place / block, from: inside..inside + count, part, at });
            at += count;
        }
    }
    pieces.sort_by_key(|piece| piece.block);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_at_blocks_and_those_of_one_block_come_together() {
        let piece = |block, from, part, at| Piece { block, from, part, at };
        let cut = pieces([(98, 5), (0, 3), (250, 0), (99, 102)], 100);
        assert_eq!(
            cut,
            [
                piece(0, 98..100, 0, 0),
                piece(0, 0..3, 1, 0),
                piece(0, 99..100, 3, 0),
                piece(1, 0..3, 0, 2),
                piece(1, 0..100, 3, 1),
                piece(2, 0..1, 3, 101),
            ]
        );
    }
}
