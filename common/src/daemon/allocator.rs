//! The memory allocator of a trainer. libtorch allocates and frees the same large blocks in every step; by default the C
//! library gives each back to the system, and every page of it is zeroed again at its next use.

use std::env;

const VARIABLE: &str = "GLIBC_TUNABLES";

/// Freed memory is kept (up to 8 GiB), however large the blocks are (up to 4 GiB), and lies in huge pages.
const TUNABLES: &str = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:\
    glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=67108864";

/// What to add to the environment of a trainer; nothing when the user has chosen for himself.
pub fn environment() -> Option<(&'static str, &'static str)> {
    env::var_os(VARIABLE).is_none().then_some((VARIABLE, TUNABLES))
}
