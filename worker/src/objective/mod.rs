//! Losses over embeddings, in a form that a rank can compute from its own rows: tensors in, tensors out. Knows no model,
//! no peer, no clock.

pub mod clip;
mod repeats;

pub use repeats::Repeats;
