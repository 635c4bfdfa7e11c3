//! What a rank sends in a step. In a ring over w ranks a gather of n bytes makes each send n·(w − 1)/w of them, a sum of n
//! bytes twice that (Thakur et al. 2005, section 4).

use super::stage::Item;
use common::ids::WorldSize;

/// Rows of all ranks to all of them: `total` bytes of all together.
pub(super) fn gather(what: &str, total: i64, world: WorldSize) -> Item {
    Item::new(what, share(total, world))
}

/// Gradients: summed, or with a sharded optimizer scattered as sums and the new weights gathered, which is as much.
pub(super) fn gradients(parameters: i64, world: WorldSize) -> Item {
    Item::new("gradients", share(2 * 4 * parameters, world))
}

fn share(bytes: i64, world: WorldSize) -> i64 {
    let world = i64::from(world.0);
    // Not (bytes · (w − 1)) / w, which might not fit.
    bytes - (bytes + world - 1) / world
}
