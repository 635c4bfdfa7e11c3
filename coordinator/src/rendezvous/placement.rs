//! Free places, and the choice among them.

use super::Place;
use common::ids::{Slot, WorkerId, WorldSize};
use std::collections::BTreeSet;

/// A connected worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its id.
    pub worker: WorkerId,
    /// How many trainers it runs at a time.
    pub trainers: u32,
}

/// Too few places are free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotEnough {
    /// How many a job needs.
    pub needed: u32,
    /// How many are free.
    pub free: u32,
}

/// The places of these machines where nothing runs, in order.
pub fn free(machines: &[Machine], busy: &BTreeSet<Place>) -> Vec<Place> {
    let places = machines.iter().flat_map(|machine| {
        (0..machine.trainers).map(|slot| Place { worker: machine.worker.clone(), slot: Slot(slot) })
    });
    let places: BTreeSet<Place> = places.filter(|place| !busy.contains(place)).collect();
    places.into_iter().collect()
}

/// As many of the free places as there are ranks, spread evenly over the workers in sorted order; returned by rank.
///
/// # Errors
/// When too few are free.
pub fn choose(free: &[Place], world: WorldSize) -> Result<Vec<Place>, NotEnough> {
    let needed = world.0 as usize;
    if free.len() < needed {
        return Err(NotEnough { needed: world.0, free: u32::try_from(free.len()).unwrap_or(u32::MAX) });
    }
    let mut sorted: Vec<&Place> = free.iter().collect();
    sorted.sort();
    // Round by round: every worker gives its first free slot before any gives its second.
    let mut rounds: Vec<(usize, &Place)> = Vec::with_capacity(sorted.len());
    for place in sorted {
        let round = match rounds.last() {
            Some((round, last)) if last.worker == place.worker => round + 1,
            _ => 0,
        };
        rounds.push((round, place));
    }
    rounds.sort();
    let mut chosen: Vec<Place> = rounds.into_iter().take(needed).map(|(_, place)| place.clone()).collect();
    chosen.sort();
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(worker: &str, slot: u32) -> Place {
        Place { worker: worker.parse().unwrap(), slot: Slot(slot) }
    }

    fn machines() -> Vec<Machine> {
        [("b", 2), ("a", 3)].map(|(id, trainers)| Machine { worker: id.parse().unwrap(), trainers }).to_vec()
    }

    #[test]
    fn busy_places_are_not_free_and_the_rest_are_in_order() {
        let busy = [place("a", 1), place("c", 0)].into();
        assert_eq!(free(&machines(), &busy), [place("a", 0), place("a", 2), place("b", 0), place("b", 1)]);
    }

    #[test]
    fn ranks_are_spread_over_workers_and_numbered_in_the_order_of_places() {
        let free = free(&machines(), &BTreeSet::new());
        assert_eq!(choose(&free, WorldSize(2)), Ok(vec![place("a", 0), place("b", 0)]));
        assert_eq!(choose(&free, WorldSize(3)), Ok(vec![place("a", 0), place("a", 1), place("b", 0)]));
        assert_eq!(choose(&free, WorldSize(6)), Err(NotEnough { needed: 6, free: 5 }));
    }
}
