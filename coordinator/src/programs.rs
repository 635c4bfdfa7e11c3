//! The other programs of this installation.

use std::path::PathBuf;

/// A program that lies beside this one, or in the search path.
pub(crate) fn program(name: &str) -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|here| Some(here.parent()?.join(name)));
    beside.filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from(name))
}
