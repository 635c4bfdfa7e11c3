//! The stages of a recipe, one file each: `fn run(&Stage settings, &mut Context) -> Result<Outcome, TrainerError>`.

pub mod clip;
pub mod embed;
pub mod eval;
mod text;
mod text_vectors;
mod towers;
