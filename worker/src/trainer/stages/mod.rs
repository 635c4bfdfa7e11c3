//! The stages of a recipe, one file each: `fn run(&Stage settings, &mut Context) -> Result<Outcome, TrainerError>`.

mod caption_vectors;
pub mod clip;
pub mod contrast;
pub mod distill;
pub mod embed;
pub mod eval;
pub mod export;
mod frozen;
pub(crate) mod llm;
pub mod mntp;
#[cfg(test)]
mod parity;
mod prompts;
mod taught;
mod teacher;
pub(crate) mod text;
mod text_vectors;
mod towers;
mod tuning;

pub(in crate::trainer) use towers::{TowerSettings, Towers};
