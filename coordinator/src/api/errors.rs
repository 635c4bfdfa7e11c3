//! Errors as gRPC statuses; the message travels as it is.

use crate::runtime::RuntimeError;
use tonic::{Code, Status};

/// What a caller is told.
pub(super) fn status(error: &RuntimeError) -> Status {
    let code = match error {
        RuntimeError::UnknownJob(_) | RuntimeError::NoCheckpoint { .. } => Code::NotFound,
        RuntimeError::Exists(_) => Code::AlreadyExists,
        RuntimeError::NoRanks(_) => Code::InvalidArgument,
        RuntimeError::Refused(_) | RuntimeError::OutputInUse { .. } => Code::FailedPrecondition,
        RuntimeError::SessionOver(_) => Code::Aborted,
        RuntimeError::Closed => Code::Unavailable,
        RuntimeError::Slow(_) => Code::DeadlineExceeded,
        RuntimeError::Store(_) | RuntimeError::Record { .. } => Code::Internal,
    };
    Status::new(code, error.to_string())
}

/// A field of a message that cannot be read.
pub(super) fn invalid(field: &str, error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("field `{field}`: {error}"))
}
