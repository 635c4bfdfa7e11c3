//! Tests over several files of `data`.

mod faults;
mod fuzz;
mod golden;
mod index;
mod load;
mod shards;

use shards::*;
