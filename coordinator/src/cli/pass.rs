//! Verbs that need tensors or pixels: the trainer does them.

use super::{Common, ckpt, error::CliError, output::Format};
use crate::programs::program;
use std::{ffi::OsString, os::unix::process::CommandExt as _, process::Command};

/// Whatever the trainer's own command line takes.
#[derive(Debug, clap::Args)]
pub(super) struct PassArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

impl PassArgs {
    /// What another verb makes of its own.
    pub(super) fn of(arguments: Vec<OsString>) -> Self {
        Self { arguments }
    }

    /// What was typed.
    pub(super) fn arguments(&self) -> &[OsString] {
        &self.arguments
    }

    /// The first of it.
    pub(super) fn first(&self) -> Option<&OsString> {
        self.arguments.first()
    }

    /// The same, with the output folder in the place of a job's id.
    pub(super) fn with_jobs_as_folders(&self) -> Self {
        let folder =
            |argument: &OsString| argument.to_str().map_or_else(|| argument.clone(), |job| ckpt::root(job).into());
        Self { arguments: self.arguments.iter().map(folder).collect() }
    }
}

/// Becomes `llm2clip-trainer VERB ARGUMENTS`.
pub(super) fn to_trainer(verb: &str, args: &PassArgs, common: &Common) -> Result<u8, CliError> {
    let trainer = program("llm2clip-trainer");
    let mut command = Command::new(&trainer);
    // What it says of itself, in its help, is what was typed.
    command.arg0("llm2clip");
    command.arg(verb).args(&args.arguments).envs(common::daemon::allocator::environment());
    if common.format == Format::Json {
        command.args(["-o", "json"]);
    }
    // Returns only when it fails.
    let error = command.exec();
    Err(CliError::new(1, format!("{} cannot be started: {error}; it belongs beside `llm2clip`", trainer.display())))
}
