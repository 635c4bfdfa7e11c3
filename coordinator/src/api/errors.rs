//! Errors as gRPC statuses; the message travels as it is.

use crate::{
    election::{Office, Seats},
    runtime::RuntimeError,
};
use proto::leader;
use tonic::{Code, Status};

/// What a caller is told.
pub(super) fn status(error: &RuntimeError) -> Status {
    let code = match error {
        RuntimeError::UnknownJob(_) | RuntimeError::UnknownWorker(_) | RuntimeError::NoCheckpoint { .. } => {
            Code::NotFound
        }
        RuntimeError::Exists(_) => Code::AlreadyExists,
        RuntimeError::NoRanks(_) | RuntimeError::Ranks { .. } => Code::InvalidArgument,
        RuntimeError::Refused(_) | RuntimeError::OutputInUse { .. } => Code::FailedPrecondition,
        RuntimeError::SessionOver(_) => Code::Aborted,
        // A worker knows by this code that asking again soon is of no use.
        RuntimeError::RefusedWorker(_) => Code::PermissionDenied,
        RuntimeError::Closed | RuntimeError::Deposed => Code::Unavailable,
        RuntimeError::Slow(_) => Code::DeadlineExceeded,
        RuntimeError::Store(_) | RuntimeError::Record { .. } => Code::Internal,
    };
    Status::new(code, error.to_string())
}

/// The leader's office, or the answer of one that stands by.
pub(super) fn office(seats: &Seats) -> Result<Office, Status> {
    seats.office().map_err(|leader| leader::standby(leader.as_deref()))
}

/// The answer to a worker that has seen a later leader.
pub(super) fn deposed(error: leader::Deposed) -> Status {
    Status::failed_precondition(error.to_string())
}

/// A field of a message that cannot be read.
pub(super) fn invalid(field: &str, error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("field `{field}`: {error}"))
}
