//! Text as the LLM's stages read it; no tensor here. `packing` and `buckets` are lengths and places only, `pairs` draws and
//! renders, `pair_source` is the one that reads.

mod buckets;
mod packing;
mod pair_source;
mod pairs;

pub use buckets::{by_length, padding};
pub use packing::{Packing, Piece, Remainder};
pub use pair_source::{PairFile, PairSource};
pub use pairs::{DrawnPair, EncodedPair, Pair, PairRule, Place};
