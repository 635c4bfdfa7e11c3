//! How a command ends badly: an exit code, and what to say.

use std::{fmt, process::ExitCode};

/// An exit code and a message for people: what, where, what to do.
#[derive(Debug)]
pub(super) struct CliError {
    code: u8,
    message: String,
}

impl CliError {
    pub(super) fn new(code: u8, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string() }
    }

    /// Usage or recipe.
    pub(super) fn usage(message: impl fmt::Display) -> Self {
        Self::new(2, message)
    }

    /// The coordinator is not there.
    pub(super) fn contact(message: impl fmt::Display) -> Self {
        Self::new(5, message)
    }

    /// Says it on stderr.
    pub(super) fn report(&self) -> ExitCode {
        eprintln!("error: {}", self.message);
        ExitCode::from(self.code)
    }
}

#[cfg(test)]
impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<anyhow::Error> for CliError {
    fn from(error: anyhow::Error) -> Self {
        Self::new(1, format!("{error:#}"))
    }
}

impl From<tonic::Status> for CliError {
    fn from(status: tonic::Status) -> Self {
        let code = match status.code() {
            tonic::Code::NotFound | tonic::Code::InvalidArgument | tonic::Code::AlreadyExists => 2,
            tonic::Code::FailedPrecondition => 2,
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => 5,
            _ => 1,
        };
        let hint = if code == 5 { ": the coordinator cannot be reached; the job may still run" } else { "" };
        Self::new(code, format!("{}{hint}", status.message()))
    }
}
