//! Collective operations among the ranks of one generation.
//!
//! Every rank calls the same operations in the same order with the same shapes. Every operation has a deadline; after an
//! error the collective is dead, and so it is for every rank once one has called `abort`.

mod ring;
mod solo;

pub use ring::TcpRing;
pub use solo::Solo;

use common::ids::{Generation, Rank, WorldSize};
use std::{net::TcpListener, time::Duration};
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
    /// The tensor's type or device is not supported here.
    #[error("{operation} does not take {what}")]
    Unsupported {
        /// Which operation.
        operation: &'static str,
        /// What it was given.
        what: String,
    },
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
    /// Returns when all ranks are here.
    fn barrier(&self) -> Result<(), CollectiveError>;
    /// Ends every operation of every rank with an error, from any thread.
    fn abort(&self, reason: &str);
}

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

/// Joins the ranks of a generation. All ranks call it; `listener` is the one whose address the peers were given.
///
/// # Errors
/// When they have not come together within `join`.
pub fn join(
    listener: &TcpListener,
    identity: Identity,
    operation: Duration,
    join: Duration,
) -> Result<Box<dyn Collective>, CollectiveError> {
    if identity.peers.len() == 1 {
        return Ok(Box::new(Solo));
    }
    Ok(Box::new(TcpRing::join(listener, &identity, operation, join)?))
}
