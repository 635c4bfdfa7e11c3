//! How much of object storage may be under way, kept, and waited for.

use std::time::Duration;

/// How much may be under way, kept, and waited for.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Requests at a time.
    pub requests: usize,
    /// Bytes that one request asks for.
    pub block: u64,
    /// Bytes of blocks that are kept.
    pub cache: u64,
    /// Bytes of them that may be there because samples in sight will want them; 0 fetches nothing before it is asked for.
    pub ahead: u64,
    /// Bytes of the longest object that a store is asked to copy by itself, in the time of one try; a longer one comes through here.
    pub copy: u64,
    /// The longest that one try may take.
    pub attempt: Duration,
    /// The longest that a request with all its tries may take.
    pub deadline: Duration,
    /// The wait before the second try.
    pub first_wait: Duration,
}

impl Default for Limits {
    /// 4 MiB in 15 s is less than the slowest link that a trainer can live on; one connection does not fill a
    /// 10 Gbit/s link, 16 and more do; a window of 16,384 photos of 12 kB and half the next fit into what is fetched ahead,
    /// and what is read without a plan, such as an index, has the rest of what is kept; in a minute a store that is
    /// restarted is there again.
    fn default() -> Self {
        Self {
            requests: 32,
            block: 4 << 20,
            cache: 512 << 20,
            ahead: 384 << 20,
            copy: 256 << 20,
            attempt: Duration::from_secs(15),
            deadline: Duration::from_secs(60),
            first_wait: Duration::from_millis(100),
        }
    }
}
