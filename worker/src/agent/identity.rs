//! Which daemon this is, of those that ever had its id: `STATE/identity.json`. A coordinator takes in one at a time.

use common::daemon::clock;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

/// Told to the coordinator when a session begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Names the state folder; another folder is another worker, even under the same id.
    pub instance: String,
    /// Rises with every daemon over the folder.
    pub incarnation: u64,
}

/// Version 1 of the document.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    schema: u32,
    instance: String,
    incarnation: u64,
}

impl Identity {
    /// That of a daemon that begins now over the folder, which it holds the lock of.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn begin(state: &Path) -> io::Result<Self> {
        Self::begin_at(state, clock::now().0)
    }

    /// The number is the time, so that a folder that was put back to an earlier state, as a snapshot of a machine is, does not begin
    /// below what was seen of it; and at least one more than the last, whatever the clock says.
    fn begin_at(state: &Path, now: u64) -> io::Result<Self> {
        let path = state.join("identity.json");
        let known = match fs::read(&path) {
            Ok(text) => serde_json::from_slice::<Record>(&text)
                .inspect_err(|error| {
                    let path = path.display();
                    tracing::warn!(%path, %error, "cannot be read: this worker is another one from now on");
                })
                .ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let record = match known {
            Some(Record { instance, incarnation, .. }) => {
                Record { schema: 1, instance, incarnation: now.max(incarnation + 1) }
            }
            None => Record { schema: 1, instance: random()?, incarnation: now },
        };
        let temporary = path.with_extension("json.tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(&record)?)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        Ok(Self { instance: record.instance, incarnation: record.incarnation })
    }
}

/// A name that nobody else has.
fn random() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_one_worker_and_each_daemon_a_later_one() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let begin = |now| Identity::begin_at(one.path(), now).unwrap();
        let (first, second, back, later) = (begin(100), begin(200), begin(50), begin(300));
        assert_eq!([first.incarnation, second.incarnation, back.incarnation, later.incarnation], [100, 200, 201, 300]);
        assert!([&second, &back, &later].iter().all(|identity| identity.instance == first.instance));
        assert_ne!(Identity::begin_at(other.path(), 100).unwrap().instance, first.instance);
        fs::write(one.path().join("identity.json"), "{").unwrap();
        assert_ne!(begin(400).instance, first.instance);
        assert!(Identity::begin_at(&one.path().join("nowhere"), 1).is_err());
    }
}
