//! Text as the LLM's stages read it; no tensor here. `packing` is lengths and places only, `pairs` and `masking` draw,
//! `corpus`, `blocks` and `pair_source` read.

mod blocks;
mod corpus;
mod masking;
mod packing;
mod pair_source;
mod pairs;

pub use blocks::{Blocks, BlocksError};
pub use corpus::Corpus;
pub use masking::{MaskRule, Masked};
pub use packing::{Packing, Piece};
pub use pair_source::{PairFile, PairSource};
pub use pairs::{DrawnPair, EncodedPair, Pair, PairRule, Place};
