//! Tests over several files of `data`.

mod ahead;
mod batches;
mod faults;
mod fuzz;
mod index;
mod layouts;
mod load;
mod object_tables;
mod objects;
mod shards;

pub(crate) use shards::*;
