//! A rank's share of the state, copied to host memory between two steps: all that training waits for.

use common::ids::{Generation, Rank, WorldSize};
use tch::{Device, Tensor};

/// Tensors in host memory that nobody changes any more.
#[derive(Debug)]
pub struct HostCopy {
    pub(super) rank: Rank,
    pub(super) generation: Generation,
    pub(super) tensors: Vec<(String, Tensor)>,
}

impl HostCopy {
    /// Copies this rank's share of `named`. All ranks hold the same tensors, and each writes some of them: every rank
    /// passes the same list and gets another share, of about the same number of bytes. The file is named after the generation, too.
    pub fn take(named: &[(String, Tensor)], rank: Rank, world: WorldSize, generation: Generation) -> Self {
        let sizes: Vec<usize> = named.iter().map(|(_, tensor)| bytes(tensor)).collect();
        let owners = owners(&sizes, world);
        let mine = named.iter().zip(owners).filter(|(_, owner)| *owner == rank.0 as usize);
        let copy = |tensor: &Tensor| {
            let tensor = tensor.detach();
            if tensor.device() == Device::Cpu { tensor.copy() } else { tensor.to_device(Device::Cpu) }.contiguous()
        };
        let tensors = mine.map(|((name, tensor), _)| (name.clone(), copy(tensor))).collect();
        Self { rank, generation, tensors }
    }

    /// How many bytes were copied.
    pub fn bytes(&self) -> usize {
        self.tensors.iter().map(|(_, tensor)| bytes(tensor)).sum()
    }
}

fn bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}

/// Who writes what: the largest first, each to whom has least so far.
fn owners(sizes: &[usize], world: WorldSize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(sizes[*i]), *i));
    let mut load = vec![0usize; world.0 as usize];
    let mut owners = vec![0; sizes.len()];
    for i in order {
        let least = (0..load.len()).min_by_key(|rank| load[*rank]).expect("there is at least one rank");
        load[least] += sizes[i];
        owners[i] = least;
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_like_size_and_every_tensor_has_one_owner() {
        let sizes = [100, 1, 50, 50, 99, 2];
        let owners = owners(&sizes, WorldSize(3));
        let load =
            |rank| sizes.iter().zip(&owners).filter(|(_, owner)| **owner == rank).map(|(size, _)| size).sum::<usize>();
        assert_eq!((0..3).map(load).sum::<usize>(), 302);
        assert!((0..3).map(load).all(|bytes| (99..=103).contains(&bytes)), "{owners:?}");
    }
}
