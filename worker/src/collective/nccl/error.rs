//! NCCL's results as errors, with its own words.

use super::library::{Code, Functions};
use cudarc::nccl::sys::ncclComm_t;
use std::{ffi::CStr, fmt};

pub(super) const SUCCESS: Code = 0;
pub(super) const IN_PROGRESS: Code = 7;

/// What kind of failure a result is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// A call of CUDA's failed.
    Cuda,
    /// A call of the system's failed.
    System,
    /// NCCL's own mistake, or memory that was overwritten.
    Internal,
    /// An argument that cannot be.
    Argument,
    /// Calls in an order that is not allowed, or different ones on different ranks.
    Usage,
    /// A peer is gone, or the network to it.
    Remote,
    /// A result that nccl.h of 2.28 does not have.
    Other(u32),
}

impl From<Code> for Failure {
    fn from(code: Code) -> Self {
        match code {
            1 => Self::Cuda,
            2 => Self::System,
            3 => Self::Internal,
            4 => Self::Argument,
            5 => Self::Usage,
            6 => Self::Remote,
            other => Self::Other(other),
        }
    }
}

/// Why a call of NCCL's did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NcclError {
    /// NCCL said so.
    #[error("{call}: {text}{}", Detail(detail))]
    Failed {
        /// Which function.
        call: &'static str,
        /// Of what kind.
        failure: Failure,
        /// `ncclGetErrorString`.
        text: String,
        /// `ncclGetLastError`; may be empty.
        detail: String,
    },
    /// The communicator was aborted before or during the call.
    #[error("the communicator was aborted: {reason}")]
    Aborted {
        /// By whom and why.
        reason: String,
    },
}

struct Detail<'a>(&'a str);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " ({})", self.0) }
    }
}

impl NcclError {
    /// What a result that is neither success nor progress means. The communicator may be null.
    pub(super) fn new(functions: &Functions, call: &'static str, code: Code, communicator: ncclComm_t) -> Self {
        // SAFETY: both return null or a C string that stays: the first a constant for any number, the second a buffer
        // of the calling thread's or of the communicator, which the caller holds, and is copied at once.
        let (text, detail) =
            unsafe { (text((functions.error_string)(code)), text((functions.last_error)(communicator))) };
        Self::Failed { call, failure: code.into(), text, detail: detail.trim().to_owned() }
    }
}

/// Copies a C string; null is empty.
///
/// # Safety
/// `pointer` is null or a C string.
unsafe fn text(pointer: *const std::ffi::c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}
