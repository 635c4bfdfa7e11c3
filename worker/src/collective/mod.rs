//! Collective operations among the ranks of one generation.
//!
//! Every rank calls the same operations in the same order with the same shapes. Every operation has a deadline; after an
//! error the collective is dead, and so it is for every rank once one has called `abort`.

#[cfg(test)]
mod contract;
mod join;
pub mod nccl;
mod ring;
mod rows;
mod solo;

pub use join::{Deadlines, Identity, join, join_unless};
pub use ring::TcpRing;
pub use solo::Solo;

use common::ids::{Generation, Rank, WorldSize};
use nccl::NcclError;
use std::time::Duration;
use tch::Tensor;

/// Why an operation failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CollectiveError {
    /// The peer is gone.
    #[error("rank {peer} is gone during {operation} number {sequence}: {reason}")]
    PeerLost {
        /// Who.
        peer: Rank,
        /// In which operation.
        operation: &'static str,
        /// The operation's number in this generation, from 0.
        sequence: u64,
        /// What the system said.
        reason: String,
    },
    /// The peer did not come in time.
    #[error("rank {peer} did not take part in {operation} number {sequence} within {deadline:?}")]
    Deadline {
        /// Who.
        peer: Rank,
        /// In which operation.
        operation: &'static str,
        /// The operation's number in this generation, from 0.
        sequence: u64,
        /// The time it had.
        deadline: Duration,
    },
    /// The peer does something else: another generation, operation, shape or type.
    #[error("rank {peer} disagrees in {operation} number {sequence}: {reason}")]
    Mismatch {
        /// Who.
        peer: Rank,
        /// In which operation.
        operation: &'static str,
        /// The operation's number in this generation, from 0.
        sequence: u64,
        /// What differs.
        reason: String,
    },
    /// `abort` was called here, or a peer said so.
    #[error("the collective was aborted: {reason}")]
    Aborted {
        /// By whom and why.
        reason: String,
    },
    /// The peers could not be joined.
    #[error("could not join the peers of generation {generation}: {reason}")]
    Join {
        /// The membership.
        generation: Generation,
        /// Why.
        reason: String,
    },
    /// An operation on the GPU did not end; which rank is missing is not known here.
    #[error("{operation} number {sequence} on the GPU did not end within {deadline:?}; {diagnosis}")]
    Stalled {
        /// Which operation.
        operation: &'static str,
        /// The operation's number among those on the GPU in this generation; 0 is the join.
        sequence: u64,
        /// The time it had.
        deadline: Duration,
        /// What NCCL's own diagnosis says.
        diagnosis: String,
    },
    /// NCCL refused an operation, or found out that it failed.
    #[error("{operation} number {sequence} on the GPU failed: {source}")]
    Nccl {
        /// Which operation.
        operation: &'static str,
        /// The operation's number among those on the GPU in this generation; 0 is the join.
        sequence: u64,
        /// What NCCL said.
        source: NcclError,
    },
    /// The streams and events around an operation.
    #[error("{operation} number {sequence} on the GPU failed: {reason}")]
    Stream {
        /// Which operation.
        operation: &'static str,
        /// The operation's number among those on the GPU in this generation; 0 is the join.
        sequence: u64,
        /// What libtorch said.
        reason: String,
    },
    /// The tensor's type or device is not supported here.
    #[error("{operation} does not take {what}")]
    Unsupported {
        /// Which operation.
        operation: &'static str,
        /// What it was given.
        what: String,
    },
}

impl CollectiveError {
    /// Whether it comes of a peer that is gone, late or gave up; not of a disagreement or of what this rank asked for.
    pub fn is_of_peers(&self) -> bool {
        match self {
            Self::PeerLost { .. }
            | Self::Deadline { .. }
            | Self::Aborted { .. }
            | Self::Join { .. }
            | Self::Stalled { .. }
            | Self::Nccl { .. } => true,
            Self::Mismatch { .. } | Self::Stream { .. } | Self::Unsupported { .. } => false,
        }
    }
}

/// The ranks of one generation as one.
///
/// Tensors are contiguous. Reductions run in a fixed order for a given world size, so their result is the same in
/// every bit on every rank and in every run.
pub trait Collective: Send + Sync {
    /// Who this is.
    fn rank(&self) -> Rank;
    /// How many there are.
    fn world(&self) -> WorldSize;
    /// Sums the tensor over all ranks, in place.
    fn all_reduce_sum(&self, tensor: &mut Tensor) -> Result<(), CollectiveError>;
    /// Stacks every rank's rows along dimension 0, in rank order. `rows[r]` is how many rows rank r has; all ranks pass
    /// the same list. Other dimensions are equal.
    fn all_gather_rows(&self, mine: &Tensor, rows: &[i64]) -> Result<Tensor, CollectiveError>;
    /// Sums over ranks, and gives each rank its own stretch of rows of the sum: `rows[r]` rows to rank r.
    fn reduce_scatter_rows(&self, tensor: &Tensor, rows: &[i64]) -> Result<Tensor, CollectiveError>;
    /// Overwrites the tensor with that of `root`.
    fn broadcast(&self, tensor: &mut Tensor, root: Rank) -> Result<(), CollectiveError>;
    /// Returns when all ranks are here and what they began before is done. Call it before dropping: a rank that leaves
    /// earlier ends what its peers still do.
    fn barrier(&self) -> Result<(), CollectiveError>;
    /// Returns when every operation begun here is done, or says why one is not.
    ///
    /// Operations on a GPU return when they are on their stream. When one fails later its result is undefined, and the
    /// next call says so: so this comes before a result is put where it cannot be taken back.
    fn finish(&self) -> Result<(), CollectiveError> {
        Ok(())
    }
    /// A float scalar on the device that will be 0 when everything begun here so far is done on every rank, and 1 when
    /// something failed on the way; absent where what returns is done. Every rank calls it at the same place.
    ///
    /// With it the device can hold an update back that [`Collective::finish`] would have the host wait for.
    fn lost(&self) -> Result<Option<Tensor>, CollectiveError> {
        Ok(None)
    }
    /// Ends every operation of every rank with an error, from any thread.
    fn abort(&self, reason: &str);
}
