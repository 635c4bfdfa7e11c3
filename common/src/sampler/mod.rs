//! Which sample stands where: pure functions of (seed, epoch, index), never of ranks or threads.
//!
//! `rng` draws, `permutation` shuffles in O(1) memory, both ways; `shuffle` does so for a data set's epoch, whole or block
//! by block; `rates` mixes data sets by weight; `spec` is what an order depends on, `leg` a stretch of it with the same
//! weights, `order` says which sample a slot of a step has and where a sample comes up, `draws` iterates over slots. `slices`
//! cuts a global batch into ranks and chunks, `caption` picks one of an image's captions, `patches` what is seen of it.

mod caption;
mod draws;
mod leg;
mod order;
mod patches;
mod permutation;
mod rates;
mod rng;
mod shuffle;
mod slices;
mod spec;

pub use caption::choose_caption;
pub use draws::{Draw, Draws};
pub use order::{Order, RESERVES, Repeat};
pub use patches::{choose_patches, kept_patches};
pub use permutation::Permutation;
pub use rng::{CounterRng, Purpose};
pub use shuffle::{Shuffle, Shuffled};
pub use slices::{chunks, local_slots, rows};
pub use spec::{AUGMENTATION_VERSION, ORDER_VERSION, OrderError, OrderSource, OrderSpec, Policy, Segment, Tail};
