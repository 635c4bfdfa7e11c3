//! `bench`: figures on this machine. What needs tensors, the trainer measures; what needs a cluster, this program.

mod recovery;

use super::{
    Common,
    error::CliError,
    pass::{self, PassArgs},
};
use clap::Parser as _;

/// A bench of this program's, as its own command line.
#[derive(Debug, clap::Parser)]
#[command(name = "llm2clip bench")]
enum Bench {
    /// How long a training stands still when a trainer is killed
    Recovery(recovery::RecoveryArgs),
}

/// Runs a bench.
pub(super) async fn bench(args: &PassArgs, common: &Common) -> Result<u8, CliError> {
    if args.first() != Some("recovery") {
        return pass::to_trainer("bench", args, common);
    }
    let words = std::iter::once("llm2clip bench".into()).chain(args.words().iter().cloned());
    match Bench::try_parse_from(words) {
        Ok(Bench::Recovery(args)) => recovery::measure(&args, common).await,
        Err(error) => error.exit(),
    }
}
