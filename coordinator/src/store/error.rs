//! What can go wrong with a store.

use super::contract::{LeaseId, Revision};
use std::{path::PathBuf, time::Duration};

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The key is not as the caller believed: someone else wrote it.
    #[error("{key} is at {}, not at {}: someone else changed it", shown(*found), shown(*expected))]
    Conflict {
        /// Which key.
        key: String,
        /// The revision that the caller believed in; absent means that the key must not exist.
        expected: Option<Revision>,
        /// The revision it has; absent means that it does not exist.
        found: Option<Revision>,
    },
    /// The writer is no longer who it believes to be.
    #[error("a write of {key} was refused: {fence} is at {}, not at {expected}: another coordinator leads", shown(*found))]
    Fenced {
        /// What was to be written.
        key: String,
        /// The key that fences the writer.
        fence: String,
        /// The revision that the writer holds it by.
        expected: Revision,
        /// The revision it has; absent means that it does not exist.
        found: Option<Revision>,
    },
    /// The lease lapsed, was revoked, or never was.
    #[error("lease {0} does not exist (any more)")]
    NoLease(LeaseId),
    /// The changes that a watch asks for are no longer kept.
    #[error("changes after revision {after} are no longer kept{}: list again and watch from there", oldest_shown(*oldest))]
    Compacted {
        /// What was asked for.
        after: Revision,
        /// The oldest change that is kept; absent when the store does not say.
        oldest: Option<Revision>,
    },
    /// Another process has the file open.
    #[error(
        "{} is open in another process: one coordinator at a time; end that one, or point this one to another folder",
        .0.display()
    )]
    InUse(PathBuf),
    /// The file was written by another version.
    #[error("{} has format {found}, this program reads format 1: update llm2clip", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// Its format.
        found: u64,
    },
    /// The file or its folder cannot be used.
    #[error("cannot {operation} {}: {source}", file.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        file: PathBuf,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No member of etcd answered in time. A write may have been made or not.
    #[error(
        "etcd did not {operation} within {} s ({endpoints}; the last said: {last}): are its members up, reachable from here, and \
         more than half of them?",
        waited.as_secs_f64()
    )]
    Deadline {
        /// What was tried.
        operation: &'static str,
        /// Who was asked.
        endpoints: String,
        /// For how long.
        waited: Duration,
        /// Why the last try did not work.
        last: String,
    },
    /// Etcd answered that it will not.
    #[error("etcd at {endpoint} refused to {operation}: {message}{}", advice(message))]
    Etcd {
        /// What was tried.
        operation: &'static str,
        /// Who refused.
        endpoint: String,
        /// What it said.
        message: String,
    },
    /// The store's address or what goes with it cannot be used.
    #[error(
        "cannot use the store `{address}`: {problem}; an address looks like etcd://10.0.0.1:2379,10.0.0.2:2379/prefix"
    )]
    Address {
        /// As given.
        address: String,
        /// What is wrong.
        problem: String,
    },
    /// The store's thread is gone; the program is ending.
    #[error("the store is closed")]
    Closed,
}

fn oldest_shown(oldest: Option<Revision>) -> String {
    oldest.map_or_else(String::new, |oldest| format!(", the oldest is {oldest}"))
}

/// What to do about etcd's answer, where that can be said.
fn advice(message: &str) -> &'static str {
    let known = [
        ("request is too large", "; raise etcd's --max-request-bytes"),
        ("received message larger than max", "; raise etcd's --max-request-bytes"),
        ("user name is empty", "; it asks for a user: give --etcd-user and --etcd-password-file"),
        ("invalid user ID or password", "; check --etcd-user and the file of --etcd-password-file"),
        ("permission denied", "; grant the user read and write on the prefix of --store"),
        ("database space exceeded", "; compact and defragment it, then disarm its alarm (etcdctl alarm disarm)"),
    ];
    known.iter().find(|(said, _)| message.contains(said)).map_or("", |(_, advice)| advice)
}

fn shown(revision: Option<Revision>) -> String {
    revision.map_or_else(|| "no revision".to_owned(), |revision| format!("revision {revision}"))
}
