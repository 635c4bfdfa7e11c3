//! What the coordinator, which knows no object store, asks of a bucket: an answer on stdout.

use super::{Limits, Location, ObjectUrl, Storage};
use std::io::Write as _;

/// A question.
#[derive(Debug, clap::Args)]
pub struct AskArgs {
    /// What is asked
    #[arg(value_enum)]
    pub question: Question,
    /// Of which object or folder of objects
    pub place: String,
}

/// What can be asked.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Question {
    /// An object's bytes.
    Read,
    /// The names in a folder, as JSON.
    List,
    /// Whether an object is there, as JSON.
    Exists,
}

/// Asks, and prints the answer.
///
/// # Errors
/// When it is no object's URL, or the store gives no answer.
pub fn main(args: &AskArgs) -> anyhow::Result<()> {
    let url: ObjectUrl = match Location::parse(&args.place)? {
        Location::Object(url) => url,
        Location::Local(path) => anyhow::bail!("{} is no URL of an object", path.display()),
    };
    let storage = Storage::from_environment(Limits::default());
    let answer = match args.question {
        Question::Read => storage.get(&url)?,
        Question::List => {
            let children = storage.children(&url)?;
            serde_json::to_vec(&[children.folders, children.objects].concat())?
        }
        Question::Exists => serde_json::to_vec(&storage.exists(&Location::Object(url))?)?,
    };
    std::io::stdout().write_all(&answer)?;
    Ok(())
}
