//! Losses over embeddings, in a form that a rank can compute from its own rows: tensors in, tensors out. Knows no model,
//! no peer, no clock.

pub mod clip;
pub mod contrast;
pub mod distillation;
pub mod masked;
mod repeats;
mod rows;
pub mod sigmoid;

#[cfg(test)]
mod fixtures;

pub use repeats::Repeats;
