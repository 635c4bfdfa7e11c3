//! Text as the LLM's stages read it. No tensor here, no file and no tokenizer: lengths and places only.

mod packing;

pub use packing::{Packing, Piece, Remainder};
