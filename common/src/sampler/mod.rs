//! Which sample stands where: pure functions of (seed, epoch, index), never of ranks or threads.
//!
//! `rng` draws, `permutation` shuffles in O(1) memory, `order` says which sample a slot of a step has, `slices` cuts a
//! global batch into ranks and chunks, `caption` picks one of an image's captions, `patches` what is seen of the image.

mod caption;
mod order;
mod patches;
mod permutation;
mod rng;
mod slices;

pub use caption::choose_caption;
pub use order::{Draw, Order, OrderError, SourceSize};
pub use patches::{choose_patches, kept_patches};
pub use permutation::Permutation;
pub use rng::{CounterRng, Purpose};
pub use slices::{chunks, local_slots, rows};
