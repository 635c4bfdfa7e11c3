//! The embedded store: one file, one process at a time, every change on disk before it counts.

use super::{
    StoreError,
    contract::{Change, Entry, Fence, LeaseId, Listing, Put, Revision, Store},
    engine::{Engine, Journal, Loaded},
};
use redb::{Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::mpsc;

/// The file's name in the state folder.
pub const FILE_NAME: &str = "store.redb";
/// The version of the layout below.
const FORMAT: u64 = 1;

/// Key → (revision, lease, value).
const ENTRIES: TableDefinition<'_, &str, (u64, Option<u64>, &[u8])> = TableDefinition::new("entries");
/// Lease → time to live in milliseconds.
const LEASES: TableDefinition<'_, u64, u64> = TableDefinition::new("leases");
/// `format` and `revision`.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// A store in `FOLDER/store.redb`.
pub struct RedbStore(Engine<File>);

struct File {
    path: PathBuf,
    database: Database,
}

impl RedbStore {
    /// Opens the store of a state folder; both are made if need be. Call it within a tokio runtime.
    ///
    /// # Errors
    /// When the file cannot be used, is of another version, or is open in another process.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join(FILE_NAME);
        std::fs::create_dir_all(folder).map_err(|source| StoreError::File {
            operation: "make the folder",
            file: folder.to_owned(),
            source: source.into(),
        })?;
        let database = Database::create(&path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(path.clone()),
            error => StoreError::File { operation: "open", file: path.clone(), source: error.into() },
        })?;
        let file = File { path, database };
        let loaded = file.load()?;
        Ok(Self(Engine::new(file, loaded)))
    }
}

impl File {
    fn failed<E>(&self, operation: &'static str) -> impl FnOnce(E) -> StoreError
    where
        E: Into<redb::Error>,
    {
        let file = self.path.clone();
        move |error| StoreError::File { operation, file, source: error.into().into() }
    }

    fn load(&self) -> Result<Loaded, StoreError> {
        self.prepare().map_err(self.failed("prepare"))?;
        let (format, loaded) = self.read().map_err(self.failed("read"))?;
        if format != FORMAT {
            return Err(StoreError::Format { file: self.path.clone(), found: format });
        }
        Ok(loaded)
    }

    /// Makes the tables of a new file.
    fn prepare(&self) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            transaction.open_table(ENTRIES)?;
            transaction.open_table(LEASES)?;
            let mut meta = transaction.open_table(META)?;
            if meta.get("format")?.is_none() {
                meta.insert("format", FORMAT)?;
                meta.insert("revision", 0)?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn read(&self) -> Result<(u64, Loaded), redb::Error> {
        let transaction = self.database.begin_read()?;
        let meta = transaction.open_table(META)?;
        let number = |name| Ok::<u64, redb::Error>(meta.get(name)?.map_or(0, |value| value.value()));
        let mut loaded = Loaded { revision: Revision(number("revision")?), ..Loaded::default() };
        for row in transaction.open_table(ENTRIES)?.iter()? {
            let (key, value) = row?;
            let (revision, lease, bytes) = value.value();
            loaded.entries.push(Entry {
                key: key.value().to_owned(),
                value: bytes.to_owned(),
                revision: Revision(revision),
                lease: lease.map(LeaseId),
            });
        }
        for row in transaction.open_table(LEASES)?.iter()? {
            let (lease, ttl) = row?;
            loaded.leases.push((LeaseId(lease.value()), Duration::from_millis(ttl.value())));
        }
        Ok((number("format")?, loaded))
    }

    fn write_changes(&self, changes: &[Change]) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut entries = transaction.open_table(ENTRIES)?;
            let mut meta = transaction.open_table(META)?;
            for change in changes {
                match change {
                    Change::Put(entry) => {
                        let lease = entry.lease.map(|lease| lease.0);
                        entries.insert(entry.key.as_str(), (entry.revision.0, lease, entry.value.as_slice()))?;
                    }
                    Change::Deleted { key, .. } => drop(entries.remove(key.as_str())?),
                }
                meta.insert("revision", change.revision().0)?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn write_lease(&self, lease: LeaseId, ttl: Option<Duration>) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut leases = transaction.open_table(LEASES)?;
            match ttl {
                Some(ttl) => {
                    drop(leases.insert(lease.0, u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))?);
                }
                None => drop(leases.remove(lease.0)?),
            }
        }
        Ok(transaction.commit()?)
    }
}

impl Journal for File {
    fn write(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        if changes.is_empty() { Ok(()) } else { self.write_changes(changes).map_err(self.failed("write")) }
    }

    fn lease(&mut self, lease: LeaseId, ttl: Option<Duration>) -> Result<(), StoreError> {
        self.write_lease(lease, ttl).map_err(self.failed("write"))
    }
}

impl Store for RedbStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.0.blocking(move |engine| Ok(engine.get(&key))).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let prefix = prefix.to_owned();
        self.0.blocking(move |engine| Ok(engine.list(&prefix))).await
    }

    async fn put_if(&self, put: Put) -> Result<Revision, StoreError> {
        self.0.blocking(move |engine| engine.put_if(put)).await
    }

    async fn delete_if(&self, key: &str, expected: Revision) -> Result<Revision, StoreError> {
        let key = key.to_owned();
        self.0.blocking(move |engine| engine.delete_if(&key, expected)).await
    }

    fn fenced(&self, fence: Fence) -> Self {
        Self(self.0.fenced(fence))
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<mpsc::Receiver<Change>, StoreError> {
        let prefix = prefix.to_owned();
        self.0.blocking(move |engine| engine.watch(&prefix, after)).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.0.blocking(move |engine| engine.grant(ttl)).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.0.blocking(move |engine| engine.keep_alive(lease)).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.0.blocking(move |engine| engine.revoke(lease)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::suite::{self, put};

    #[tokio::test]
    async fn keeps_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        suite::contract(&RedbStore::open(folder.path()).unwrap()).await;
    }

    #[tokio::test]
    async fn what_was_put_is_there_after_a_restart_and_revisions_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let store = RedbStore::open(folder.path()).unwrap();
        let first = store.put_if(put("/a", "1", None)).await.unwrap();
        let leased = store.grant(Duration::from_millis(50)).await.unwrap();
        store.put_if(Put { lease: Some(leased), ..put("/leased", "x", None) }).await.unwrap();
        drop(store);

        let store = RedbStore::open(folder.path()).unwrap();
        let entry = store.get("/a").await.unwrap().unwrap();
        assert_eq!((entry.value.as_slice(), entry.revision), (b"1".as_slice(), first));
        let listing = store.list("/").await.unwrap();
        let mut changes = store.watch("/leased", listing.revision).await.unwrap();
        let gone = tokio::time::timeout(Duration::from_secs(10), changes.recv()).await.unwrap().unwrap();
        assert!(matches!(gone, Change::Deleted { .. }) && gone.revision() > listing.revision);
    }

    #[tokio::test]
    async fn a_second_process_is_told_which_file_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let _open = RedbStore::open(folder.path()).unwrap();
        let error = RedbStore::open(folder.path()).err().unwrap();
        assert!(matches!(error, StoreError::InUse(_)) && error.to_string().contains("store.redb"), "{error}");
    }
}
