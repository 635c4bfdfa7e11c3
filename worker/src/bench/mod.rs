//! Figures on the user's own machine, as JSON: warm-up, repeats, medians; every field is named with its unit.

pub mod checkpoint;
pub mod collective;
pub mod loader;
pub mod loss;
pub mod step;
