//! Documents packed into blocks of n tokens, for `mntp`.
//!
//! Which tokens block k holds is a function of the documents' lengths and k alone: no stream has to be read up to it, so
//! a resume costs a binary search, and the order of blocks is the sampler's, by (seed, position), as for images.

use common::recipe::Remainder;
use std::ops::Range;

/// Tokens of one document in a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The document's number.
    pub document: usize,
    /// Which of its tokens.
    pub tokens: Range<u64>,
}

/// The blocks of a list of documents. Eight bytes a document.
#[derive(Debug)]
pub struct Packing {
    block: u64,
    // Tokens before each document and after the last.
    starts: Vec<u64>,
    batches: Vec<Batch>,
    blocks: u64,
}

/// Documents whose tokens are cut into blocks together.
#[derive(Debug)]
struct Batch {
    // Blocks before it.
    before: u64,
    // Tokens before it.
    start: u64,
}

impl Packing {
    /// Packs documents of these lengths in tokens into blocks of `block`.
    ///
    /// # Panics
    /// When a block or a batch is empty.
    pub fn new(lengths: impl IntoIterator<Item = u32>, block: u32, remainder: Remainder) -> Self {
        assert!(block > 0 && remainder != Remainder::Every(0), "blocks and batches hold something");
        let mut starts = vec![0];
        let mut tokens = 0;
        for length in lengths {
            tokens += u64::from(length);
            starts.push(tokens);
        }
        let documents = starts.len() - 1;
        let rows = match remainder {
            Remainder::Once => documents.max(1),
            Remainder::Every(rows) => rows as usize,
        };
        let block = u64::from(block);
        let mut batches = Vec::new();
        let mut blocks = 0;
        for first in (0..documents).step_by(rows) {
            let (start, end) = (starts[first], starts[(first + rows).min(documents)]);
            batches.push(Batch { before: blocks, start });
            blocks += (end - start) / block;
        }
        Self { block, starts, batches, blocks }
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Tokens that are in no block.
    pub fn dropped(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0) - self.blocks * self.block
    }

    /// The tokens of block `number`, in order; together they are one block long.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn pieces(&self, number: u64) -> Vec<Piece> {
        assert!(number < self.blocks, "there are {} blocks, and block {number} was asked for", self.blocks);
        let batch = &self.batches[self.batches.partition_point(|batch| batch.before <= number) - 1];
        let start = batch.start + (number - batch.before) * self.block;
        let end = start + self.block;
        // The last document that begins at or before the block, so that empty ones before it are passed over.
        let first = self.starts.partition_point(|at| *at <= start) - 1;
        let documents = self.starts.windows(2).enumerate().skip(first).take_while(|(_, bounds)| bounds[0] < end);
        documents
            .filter(|(_, bounds)| bounds[0] < bounds[1])
            .map(|(document, bounds)| Piece {
                document,
                tokens: start.max(bounds[0]) - bounds[0]..end.min(bounds[1]) - bounds[0],
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Golden {
        block: u32,
        lengths: Vec<u32>,
        reference: Vec<Vec<(usize, u64, u64)>>,
        whole: Vec<Vec<(usize, u64, u64)>>,
    }

    fn golden() -> Golden {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/text/packing.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn check(remainder: Remainder, expected: &[Vec<(usize, u64, u64)>]) -> Packing {
        let golden = golden();
        let packing = Packing::new(golden.lengths.iter().copied(), golden.block, remainder);
        assert_eq!(packing.blocks(), expected.len() as u64);
        // From the back: a block needs none before it.
        for (number, expected) in expected.iter().enumerate().rev() {
            let pieces = packing.pieces(number as u64);
            let found: Vec<_> = pieces.into_iter().map(|p| (p.document, p.tokens.start, p.tokens.end)).collect();
            assert_eq!(&found, expected, "block {number}");
        }
        packing
    }

    #[test]
    fn blocks_are_the_references_with_its_loss_at_every_1000_rows() {
        let packing = check(Remainder::Every(1000), &golden().reference);
        assert!(packing.dropped() > 512, "three batches end here");
    }

    #[test]
    fn without_that_loss_less_than_a_block_is_dropped() {
        let packing = check(Remainder::Once, &golden().whole);
        assert!(packing.dropped() < 512);
    }

    #[test]
    fn no_documents_and_documents_shorter_than_a_block_make_no_block() {
        for remainder in [Remainder::Once, Remainder::Every(2)] {
            assert_eq!(Packing::new([], 8, remainder).blocks(), 0);
            let short = Packing::new([3, 4], 8, remainder);
            assert_eq!((short.blocks(), short.dropped()), (0, 7));
        }
        assert_eq!(Packing::new([4, 4, 3, 4], 8, Remainder::Every(2)).blocks(), 1);
    }
}
