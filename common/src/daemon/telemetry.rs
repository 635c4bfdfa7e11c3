//! Logs on stderr.

use std::io::IsTerminal as _;
use tracing_subscriber::EnvFilter;

/// Begins to log on stderr, as JSON lines if `json`. `LLM2CLIP_LOG` sets the filter, such as `info,worker=debug`; a
/// second call changes nothing.
pub fn init(json: bool) {
    let filter = EnvFilter::try_from_env("LLM2CLIP_LOG").unwrap_or_else(|_| EnvFilter::new("info,tk_encode=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let ansi = std::io::stderr().is_terminal();
    // An error here means that someone else set up logs already.
    let _ = if json { builder.json().try_init() } else { builder.with_ansi(ansi).try_init() };
}
