//! `bench`: figures on this machine. What needs tensors, the trainer measures; what needs a cluster, this program.

mod control;
mod figures;
mod fleet;
mod process;
mod recovery;

use super::{
    Common,
    error::CliError,
    output::Format,
    pass::{self, PassArgs},
};
use clap::Parser as _;

/// A bench of this program's, as its own command line.
#[derive(Debug, clap::Parser)]
#[command(name = "llm2clip bench")]
struct Bench {
    #[command(subcommand)]
    what: What,
    /// What to print on stdout: text, or one JSON document
    #[arg(short, long, global = true, value_enum)]
    output: Option<Format>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// How long a training stands still when a trainer is killed
    Recovery(recovery::RecoveryArgs),
    /// A coordinator under many workers, of which one dies each second
    Control(control::ControlArgs),
}

/// Runs a bench.
pub(super) async fn bench(args: &PassArgs, common: &Common) -> Result<u8, CliError> {
    if args.first().is_none_or(|first| first != "recovery" && first != "control") {
        return pass::to_trainer("bench", args, common);
    }
    let words = std::iter::once("llm2clip bench".into()).chain(args.arguments().iter().cloned());
    match Bench::try_parse_from(words) {
        Ok(Bench { what, output }) => {
            let format = output.unwrap_or(common.format);
            match what {
                What::Recovery(args) => recovery::measure(&args, format).await,
                What::Control(args) => control::measure(&args, format).await,
            }
        }
        Err(error) => error.exit(),
    }
}
