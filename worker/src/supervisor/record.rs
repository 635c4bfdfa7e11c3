//! What is remembered of a trainer on disk, so that a restarted daemon finds it: `STATE/trainers/SLOT.json`.

use common::ids::{Generation, JobId, Slot};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// A trainer that was started, version 1 of the document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerRecord {
    /// The version of this document: 1.
    pub schema: u32,
    /// Its place.
    pub slot: Slot,
    /// Its process, which leads a process group of its own.
    pub pid: u32,
    /// When the process began, in clock ticks since the machine's start: tells it from a later one with its pid.
    pub started_ticks: u64,
    /// Whom it works for.
    pub job: JobId,
    /// The newest membership it was given to.
    pub generation: Generation,
    /// Where its peers reach it; absent until it said so.
    pub peer: Option<String>,
    /// Where it connects to.
    pub socket: PathBuf,
    /// Its log.
    pub log: PathBuf,
}

impl TrainerRecord {
    /// The record's file among others in `folder`.
    fn path(folder: &Path, slot: Slot) -> PathBuf {
        folder.join(format!("{slot}.json"))
    }

    /// Writes the record in one piece.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let path = Self::path(folder, self.slot);
        let temporary = path.with_extension("json.tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    }

    /// Forgets the trainer of a slot.
    pub fn remove(folder: &Path, slot: Slot) {
        if let Err(error) = fs::remove_file(Self::path(folder, slot)) {
            tracing::warn!(%slot, %error, "could not delete the record of a trainer");
        }
    }

    /// All records in `folder`; one that cannot be read is told of and left.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn read_all(folder: &Path) -> io::Result<Vec<Self>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice::<Self>(&bytes)?)) {
                Ok(record) if record.schema == 1 => records.push(record),
                Ok(record) => {
                    tracing::warn!(path = %path.display(), schema = record.schema, "a record of another version")
                }
                Err(error) => tracing::warn!(path = %path.display(), %error, "a record of a trainer cannot be read"),
            }
        }
        records.sort_by_key(|record| record.slot);
        Ok(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_a_torn_one_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let record = TrainerRecord {
            schema: 1,
            slot: Slot(3),
            pid: 7,
            started_ticks: 99,
            job: "demo-1".parse().unwrap(),
            generation: Generation(2),
            peer: None,
            socket: "/s".into(),
            log: "/l".into(),
        };
        record.write(folder.path()).unwrap();
        fs::write(folder.path().join("4.json"), "{").unwrap();
        assert_eq!(TrainerRecord::read_all(folder.path()).unwrap(), [record]);
        TrainerRecord::remove(folder.path(), Slot(3));
        assert_eq!(TrainerRecord::read_all(folder.path()).unwrap(), []);
    }
}
