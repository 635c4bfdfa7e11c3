//! The stages of a recipe, one file each: `fn run(&Stage settings, &mut Context) -> Result<Outcome, TrainerError>`.

pub mod clip;
pub mod contrast;
pub mod embed;
pub mod eval;
pub mod export;
mod llm;
pub mod mntp;
#[cfg(test)]
mod parity;
mod prompts;
pub(crate) mod text;
mod text_vectors;
mod towers;
mod tuning;
