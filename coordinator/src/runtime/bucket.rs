//! Manifests in a bucket. A trainer is asked, as a process of its own: it knows object stores, and the coordinator none. A coordinator
//! without one beside it, or without the bucket's credentials, does not see the bucket, and decides as one that sees no shared storage.

use crate::programs::program;
use std::{
    io,
    path::Path,
    process::{Output, Stdio},
};
use tokio::process::Command;

/// An object as text.
pub(super) async fn read(object: &Path) -> io::Result<String> {
    String::from_utf8(ask("read", object).await?).map_err(io::Error::other)
}

/// The names in a folder of objects.
pub(super) async fn list(folder: &Path) -> io::Result<Vec<String>> {
    serde_json::from_slice(&ask("list", folder).await?).map_err(io::Error::other)
}

/// Whether an object is there.
pub(super) async fn exists(object: &Path) -> io::Result<bool> {
    serde_json::from_slice(&ask("exists", object).await?).map_err(io::Error::other)
}

/// Who waits no longer ends the process.
async fn ask(question: &str, place: &Path) -> io::Result<Vec<u8>> {
    let mut trainer = Command::new(program("llm2clip-trainer"));
    trainer.args(["objects", question]).arg(place).stdin(Stdio::null()).kill_on_drop(true);
    let Output { status, stdout, stderr } = trainer.output().await?;
    if status.success() {
        return Ok(stdout);
    }
    let said = String::from_utf8_lossy(&stderr).into_owned();
    tracing::info!(question, place = %place.display(), said, "no answer from the bucket of a job's checkpoints");
    Err(io::Error::other(said))
}
