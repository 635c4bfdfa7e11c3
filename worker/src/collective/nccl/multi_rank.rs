//! Several ranks on one GPU: what has to stand in the environment of such a process before it starts.
//!
//! For tests and development: NCCL refuses two ranks on one GPU of one host. Its version decides how that is got round,
//! and who starts processes may not know it.

use super::library::Version;

/// The first that has `NCCL_MULTI_RANK_GPU_ENABLE`.
const SHARES: Version = Version(23_000);

/// Where a process stands among those of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// A name that no other machine has.
    pub host: &'a str,
    /// The process's place on the machine, from 0; process p is on GPU p modulo `gpus`.
    pub slot: u32,
    /// Processes of the machine.
    pub processes: u32,
    /// GPUs of the machine.
    pub gpus: u32,
}

/// The variables to set; none when every process has a GPU of its own, or there is no GPU. Without a version, what works
/// with every one.
pub fn environment(place: Place<'_>, version: Option<Version>) -> Vec<(&'static str, String)> {
    let Place { host, slot, processes, gpus } = place;
    if gpus == 0 || processes <= gpus {
        return Vec::new();
    }
    if version.is_some_and(|version| version >= SHARES) {
        // Every rank takes blocks of the one GPU for itself; with too many of them the ranks wait for each other.
        return vec![("NCCL_MULTI_RANK_GPU_ENABLE", "1".to_owned()), ("NCCL_MAX_CTAS", "4".to_owned())];
    }
    // Ranks of one GPU say that they are on different hosts, and talk over sockets; ranks of different GPUs do not.
    vec![("NCCL_HOSTID", format!("{host}-{}", slot / gpus))]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(slot: u32, processes: u32, gpus: u32, version: Option<u32>, expected: &[(&str, &str)]) {
        let place = Place { host: "box", slot, processes, gpus };
        let found = environment(place, version.map(Version));
        let found: Vec<_> = found.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(found, expected, "{place:?} {version:?}");
    }

    #[test]
    fn only_ranks_that_share_a_gpu_are_told() {
        check(1, 2, 2, Some(22_809), &[]);
        check(1, 2, 0, Some(22_809), &[]);
        check(1, 2, 1, Some(22_809), &[("NCCL_HOSTID", "box-1")]);
        check(2, 4, 2, None, &[("NCCL_HOSTID", "box-1")]);
        check(1, 4, 2, None, &[("NCCL_HOSTID", "box-0")]);
        check(1, 2, 1, Some(23_003), &[("NCCL_MULTI_RANK_GPU_ENABLE", "1"), ("NCCL_MAX_CTAS", "4")]);
    }
}
