//! The stages of a recipe, one file each: `fn run(&Stage settings, &mut Context) -> Result<Outcome, TrainerError>`.

pub mod clip;
pub mod contrast;
pub mod embed;
pub mod eval;
mod llm;
pub mod mntp;
#[cfg(test)]
mod parity;
mod retrieval;
mod text;
mod towers;
mod tuning;
