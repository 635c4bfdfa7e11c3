//! Several trainers on one GPU: what has to stand in the environment of such a process when it starts.
//!
//! For tests and development: NCCL refuses two ranks on one GPU of one host. Its version decides how that is got round,
//! and the daemon, which does not load it, does not know it.

/// The first NCCL, as major and minor number, that has `NCCL_MULTI_RANK_GPU_ENABLE`.
const SHARES: (u32, u32) = (2, 30);

/// One trainer among those of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// Its worker, a name that no other has.
    pub worker: &'a str,
    /// Its place on the worker.
    pub slot: u32,
    /// How many trainers compute on one GPU of this machine, at most; 0 when it has none.
    pub ranks_per_gpu: u32,
}

/// How many of the trainers compute on one GPU, at most.
pub fn ranks_per_gpu(trainers: u32, gpus: usize) -> u32 {
    u32::try_from(gpus).ok().filter(|gpus| *gpus > 0).map_or(0, |gpus| trainers.div_ceil(gpus))
}

/// The variables to set; none when every trainer has a GPU of its own, or none has. Without a version, what works with
/// every one.
pub fn environment(place: Place<'_>, version: Option<(u32, u32)>) -> Vec<(&'static str, String)> {
    let Place { worker, slot, ranks_per_gpu } = place;
    if ranks_per_gpu < 2 {
        return Vec::new();
    }
    if version.is_some_and(|version| version >= SHARES) {
        // Every rank takes blocks of the one GPU for itself; with too many of them the ranks wait for each other.
        return vec![("NCCL_MULTI_RANK_GPU_ENABLE", "1".to_owned()), ("NCCL_MAX_CTAS", "4".to_owned())];
    }
    // Each says that it is on a host of its own, and they talk over sockets: slow, but NCCL.
    vec![("NCCL_HOSTID", format!("{worker}-{slot}"))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trainers_that_share_a_gpu_are_told() {
        let check = |slot, ranks_per_gpu, version, expected: &[(&str, &str)]| {
            let place = Place { worker: "box", slot, ranks_per_gpu };
            let found = environment(place, version);
            let found: Vec<_> = found.iter().map(|(name, value)| (*name, value.as_str())).collect();
            assert_eq!(found, expected, "{place:?} {version:?}");
        };
        check(1, 0, Some((2, 28)), &[]);
        check(1, 1, None, &[]);
        check(1, 2, None, &[("NCCL_HOSTID", "box-1")]);
        check(0, 2, Some((2, 28)), &[("NCCL_HOSTID", "box-0")]);
        check(1, 2, Some((2, 30)), &[("NCCL_MULTI_RANK_GPU_ENABLE", "1"), ("NCCL_MAX_CTAS", "4")]);
        assert_eq!(
            [(2, 2), (3, 2), (1, 0), (2, 1)].map(|(trainers, gpus)| ranks_per_gpu(trainers, gpus)),
            [1, 2, 0, 2]
        );
    }
}
