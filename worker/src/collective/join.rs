//! How the ranks of a generation become one: the ring first, and over it NCCL, when they compute on GPUs.

use super::{Collective, CollectiveError, Solo, TcpRing, nccl};
use crate::torch::cuda::DEVICE_VARIABLE;
use common::ids::{Generation, Rank};
use std::{net::TcpListener, time::Duration};
use tch::{Device, Tensor};

/// Who joins whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The membership.
    pub generation: Generation,
    /// This rank.
    pub rank: Rank,
    /// Every rank's listener, by rank; one is a world of its own.
    pub peers: Vec<String>,
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// The peers have come together.
    pub join: Duration,
    /// One operation.
    pub operation: Duration,
}

/// Joins the ranks of a generation. All ranks call it; `listener` is the one whose address the peers were given.
/// Tensors of `device` and of the CPU can be given to the result.
///
/// # Errors
/// When they have not come together in time, or compute on different kinds of device.
pub fn join(
    listener: &TcpListener,
    identity: Identity,
    deadlines: Deadlines,
    device: Device,
) -> Result<Box<dyn Collective>, CollectiveError> {
    join_unless(listener, identity, deadlines, device, &|| false)
}

/// As [`join`]; given up soon after `in_vain` says so.
///
/// # Errors
/// As [`join`].
pub fn join_unless(
    listener: &TcpListener,
    identity: Identity,
    deadlines: Deadlines,
    device: Device,
    in_vain: &(dyn Fn() -> bool + Sync),
) -> Result<Box<dyn Collective>, CollectiveError> {
    if identity.peers.len() == 1 {
        return Ok(Box::new(Solo));
    }
    let ring = TcpRing::join_unless(listener, &identity, deadlines.join, deadlines.join, in_vain)?;
    let fail = |reason: String| CollectiveError::Join { generation: identity.generation, reason };
    match device {
        Device::Cuda(index) => {
            let library = nccl::Library::of_this_process();
            let own = library.as_ref().map_or(Engine::Broken, |library| Engine::Nccl(library.version()));
            let agreed = agree(&ring, own).map_err(fail);
            let library = library.map_err(|error| fail(error.to_string()))?;
            agreed?;
            let streams = nccl::CudaStreams::new(index).map_err(|error| fail(format!("the GPU's streams: {error}")))?;
            let joined = nccl::NcclCollective::join(ring, library, Box::new(streams), device, deadlines);
            Ok(Box::new(joined.map_err(|error| fail(error.to_string()))?))
        }
        _ => {
            agree(&ring, Engine::Ring).map_err(fail)?;
            Ok(Box::new(ring.with_deadline(deadlines.operation)))
        }
    }
}

/// What a rank brings along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    /// It computes on the CPU.
    Ring,
    /// It has a GPU and this NCCL.
    Nccl(nccl::Version),
    /// It has a GPU and no NCCL that can be used.
    Broken,
}

impl Engine {
    fn number(self) -> i64 {
        match self {
            Self::Ring => 0,
            Self::Nccl(version) => i64::from(version.0),
            Self::Broken => -1,
        }
    }

    fn from(number: i64) -> Self {
        match u32::try_from(number) {
            Ok(0) => Self::Ring,
            Ok(version) => Self::Nccl(nccl::Version(version)),
            Err(_) => Self::Broken,
        }
    }

    fn describe(self, rank: Rank) -> String {
        match self {
            Self::Ring => format!("rank {rank} computes on the CPU"),
            Self::Nccl(version) => format!("rank {rank} on a GPU with NCCL {version}"),
            Self::Broken => format!("rank {rank} on a GPU without an NCCL that can be used"),
        }
    }
}

/// All ranks have the same engine, or none goes on: a rank that waits for NCCL's others would wait for its deadline.
fn agree(ring: &TcpRing, own: Engine) -> Result<(), String> {
    let rows = vec![1; ring.world().0 as usize];
    let gathered =
        ring.all_gather_rows(&Tensor::from_slice(&[own.number()]), &rows).map_err(|error| error.to_string())?;
    let numbers: Vec<i64> = Vec::try_from(&gathered).map_err(|error: tch::TchError| error.to_string())?;
    judge(&numbers.into_iter().map(Engine::from).collect::<Vec<_>>())
}

fn judge(engines: &[Engine]) -> Result<(), String> {
    let described = |at: usize| engines[at].describe(Rank(at as u32));
    if let Some(broken) = engines.iter().position(|engine| *engine == Engine::Broken) {
        return Err(described(broken));
    }
    match engines.iter().position(|engine| *engine != engines[0]) {
        None => Ok(()),
        Some(other) => Err(format!(
            "{}, {}: all trainers of a job need the same device and NCCL; with {DEVICE_VARIABLE}=cpu a worker's trainers \
             compute on the CPU",
            described(0),
            described(other)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_with_different_engines_do_not_join() {
        let nccl = |version| Engine::Nccl(nccl::Version(version));
        assert_eq!(judge(&[Engine::Ring, Engine::Ring]), Ok(()));
        assert_eq!(judge(&[nccl(22_809), nccl(22_809)]), Ok(()));
        let check = |engines: &[Engine], expected: &str| {
            let error = judge(engines).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check(&[Engine::Ring, nccl(22_809)], "rank 0 computes on the CPU, rank 1 on a GPU with NCCL 2.28.9");
        check(&[nccl(23_003), nccl(23_003), nccl(22_809)], "rank 2 on a GPU with NCCL 2.28.9");
        check(&[nccl(23_003), Engine::Broken], "rank 1 on a GPU without an NCCL");
        for engine in [Engine::Ring, Engine::Broken, nccl(22_809)] {
            assert_eq!(Engine::from(engine.number()), engine);
        }
    }
}
