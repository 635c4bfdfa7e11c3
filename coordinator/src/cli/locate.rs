//! Finds the coordinator that has a job.
//!
//! `run` keeps a job's state under its output folder, in `.llm2clip`, and leaves a pointer to it in the user's state
//! folder, so that the job can be named by its id from anywhere. While a coordinator runs over such a folder, its address
//! is in `address.json` there.

use super::error::CliError;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where `run` keeps a job's state, below its output folder.
pub(super) const STATE_FOLDER: &str = ".llm2clip";

/// A coordinator that runs over a state folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Address {
    /// Its URL.
    pub url: String,
    /// Its process.
    pub pid: u32,
}

/// Where a job of `run` is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pointer {
    /// Its id.
    pub job: String,
    /// Its state folder.
    pub state: PathBuf,
}

/// What a user's JOB means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A job of `run`: its state folder; its id, or whichever is newest there.
    Local { state: PathBuf, job: Option<String> },
    /// A job of a coordinator elsewhere.
    Remote { job: String },
}

/// Finds out what JOB means.
pub(super) fn place(job: &str) -> Place {
    let folder = Path::new(job);
    let below = folder.join(STATE_FOLDER);
    for state in [below.as_path(), folder] {
        if state.join("store.redb").is_file() {
            let state = fs::canonicalize(state).unwrap_or_else(|_| state.to_owned());
            return Place::Local { state, job: None };
        }
    }
    match pointers().into_iter().find(|pointer| pointer.job == job) {
        Some(pointer) => Place::Local { state: pointer.state, job: Some(pointer.job) },
        None => Place::Remote { job: job.to_owned() },
    }
}

/// The address of the coordinator that runs over a state folder, if its process lives.
pub(super) fn address(state: &Path) -> Option<Address> {
    let address: Address = serde_json::from_slice(&fs::read(state.join("address.json")).ok()?).ok()?;
    let pid = rustix::process::Pid::from_raw(i32::try_from(address.pid).ok()?)?;
    rustix::process::test_kill_process(pid).is_ok().then_some(address)
}

/// Leaves this process's address in a state folder.
pub(super) fn publish(state: &Path, url: &str) -> Result<(), CliError> {
    let address = Address { url: url.to_owned(), pid: std::process::id() };
    write(&state.join("address.json"), &address)
}

/// Takes the address away again.
pub(super) fn withdraw(state: &Path) {
    // Whoever finds it will see that the process is gone.
    let _ = fs::remove_file(state.join("address.json"));
}

/// Leaves a pointer to a job.
pub(super) fn point(job: &str, state: &Path) -> Result<(), CliError> {
    let Some(folder) = pointer_folder() else { return Ok(()) };
    let path = folder.join(format!("{job}.json"));
    write(&path, &Pointer { job: job.to_owned(), state: state.to_owned() })
}

/// All jobs of `run` whose state is still there, by id.
pub(super) fn pointers() -> Vec<Pointer> {
    let entries = pointer_folder().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let read = |entry: fs::DirEntry| serde_json::from_slice::<Pointer>(&fs::read(entry.path()).ok()?).ok();
    let mut pointers: Vec<Pointer> = entries.filter_map(read).collect();
    pointers.retain(|pointer| pointer.state.join("store.redb").is_file());
    pointers.sort_by(|a, b| a.job.cmp(&b.job));
    pointers
}

fn pointer_folder() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state"));
    Some(state.or_else(home)?.join("llm2clip/jobs"))
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), CliError> {
    let fail = |error: io::Error| CliError::new(1, format!("could not write {}: {error}", path.display()));
    let folder = path.parent().expect("the file is in a folder");
    fs::create_dir_all(folder).map_err(fail)?;
    let temporary = path.with_extension("json.tmp");
    fs::write(&temporary, serde_json::to_vec(value).expect("it is JSON")).map_err(fail)?;
    fs::rename(&temporary, path).map_err(fail)
}
