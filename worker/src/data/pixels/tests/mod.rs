//! Pixels beside those of other programs.

mod golden;
mod parity;
