//! What goes over a connection: before every stretch of bytes a header that says what it belongs to.

use common::ids::{Generation, Rank};

/// The first bytes of a connection: whose it is, and the version of what follows.
pub(super) const MAGIC: [u8; 8] = *b"l2c-rin2";
/// Of them, those that every version has.
const FAMILY: &[u8] = b"l2c-rin";
/// What the answering side says to a caller that it was waiting for.
pub(super) const WELCOME: u8 = b'w';
/// The length of a [`Hello`] on the wire.
pub(super) const HELLO_BYTES: usize = 20;
/// The length of a [`Header`] on the wire.
pub(super) const HEADER_BYTES: usize = 26;
/// The longest reason that an abort carries, in bytes.
pub(super) const MAX_REASON_BYTES: u64 = 4096;

/// What the connecting side says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hello {
    pub generation: Generation,
    pub rank: Rank,
}

impl Hello {
    pub(super) fn encode(self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.generation.0.to_le_bytes());
        bytes[16..].copy_from_slice(&self.rank.0.to_le_bytes());
        bytes
    }

    /// Whether these are the first bytes of a trainer of another version.
    pub(super) fn is_of_another_version(bytes: &[u8; HELLO_BYTES]) -> bool {
        bytes.starts_with(FAMILY) && !bytes.starts_with(&MAGIC)
    }

    /// Absent when it is something else than a peer.
    pub(super) fn decode(bytes: &[u8; HELLO_BYTES]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (generation, rank) = rest.split_first_chunk::<8>()?;
        let rank = u32::from_le_bytes(rank.try_into().ok()?);
        (*magic == MAGIC).then_some(Self { generation: Generation(u64::from_le_bytes(*generation)), rank: Rank(rank) })
    }
}

/// The operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Op {
    AllReduce = 1,
    AllGather = 2,
    ReduceScatter = 3,
    Broadcast = 4,
    Barrier = 5,
    Abort = 6,
}

impl Op {
    pub(super) fn name(self) -> &'static str {
        match self {
            Op::AllReduce => "all_reduce",
            Op::AllGather => "all_gather",
            Op::ReduceScatter => "reduce_scatter",
            Op::Broadcast => "broadcast",
            Op::Barrier => "barrier",
            Op::Abort => "abort",
        }
    }

    fn from(byte: u8) -> Option<Self> {
        [Op::AllReduce, Op::AllGather, Op::ReduceScatter, Op::Broadcast, Op::Barrier, Op::Abort]
            .into_iter()
            .find(|op| *op as u8 == byte)
    }
}

/// What the following bytes belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub op: Op,
    pub generation: Generation,
    pub sequence: u64,
    pub bytes: u64,
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = b'#';
        bytes[1] = self.op as u8;
        bytes[2..10].copy_from_slice(&self.generation.0.to_le_bytes());
        bytes[10..18].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[18..].copy_from_slice(&self.bytes.to_le_bytes());
        bytes
    }

    /// Absent when the stream is out of step.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let op = Op::from(bytes[1])?;
        (bytes[0] == b'#').then_some(())?;
        Some(Self { op, generation: Generation(number(2)?), sequence: number(10)?, bytes: number(18)? })
    }

    /// What differs from what is due.
    pub(super) fn difference(&self, due: &Header) -> String {
        format!(
            "it sends {} number {} with {} bytes, due are {} number {} with {} bytes",
            self.op.name(),
            self.sequence,
            self.bytes,
            due.op.name(),
            due.sequence,
            due.bytes
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_and_noise_is_refused() {
        let header = Header { op: Op::Broadcast, generation: Generation(7), sequence: 9, bytes: 1 << 40 };
        assert_eq!(Header::decode(&header.encode()), Some(header));
        assert_eq!(Header::decode(&[0; HEADER_BYTES]), None);
        let hello = Hello { generation: Generation(3), rank: Rank(2) };
        assert_eq!(Hello::decode(&hello.encode()), Some(hello));
        assert_eq!(Hello::decode(&[7; HELLO_BYTES]), None);
        let mut older = hello.encode();
        older[..8].copy_from_slice(b"l2c-ring");
        assert_eq!(Hello::decode(&older), None);
        let other = [older, hello.encode(), [7; HELLO_BYTES]].map(|bytes| Hello::is_of_another_version(&bytes));
        assert_eq!(other, [true, false, false]);
    }
}
