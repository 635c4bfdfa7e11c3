//! Text as the LLM's stages read it. No tensor here, no file and no tokenizer: lengths and places only.

mod buckets;
mod packing;

pub use buckets::{by_length, padding};
pub use packing::{Packing, Piece, Remainder};
