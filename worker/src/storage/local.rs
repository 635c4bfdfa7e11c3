//! Files: read by position, written by temporary name and rename.

use super::{Entry, Location, StorageError, pattern};
use std::{
    collections::HashMap,
    fs::{File, Metadata},
    io::{self, Read as _, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// Files held open at once, well below the usual limit of 1024 a process.
const OPEN: usize = 256;

/// A bounded number of open files.
#[derive(Debug, Default)]
pub struct Local {
    open: Mutex<HashMap<PathBuf, Arc<File>>>,
}

impl Local {
    /// The files that match, sorted.
    pub fn list(&self, path: &Path) -> Result<Vec<Entry>, StorageError> {
        let no_match = || StorageError::NoMatch { pattern: path.to_owned().into() };
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(no_match)?;
        if !pattern::is_pattern(name) {
            return if path.is_file() { Ok(vec![self.stat(path)?]) } else { Err(no_match()) };
        }
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let io = |source| StorageError::Io { operation: "list", path: folder.to_owned(), source };
        if !folder.is_dir() {
            return Err(no_match());
        }
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let matched = entry.file_name().to_str().is_some_and(|file| pattern::matches(name, file));
            if matched && entry.path().is_file() {
                found.push(self.stat(&entry.path())?);
            }
        }
        found.sort();
        if found.is_empty() { Err(no_match()) } else { Ok(found) }
    }

    /// A file's size and modification time.
    pub fn stat(&self, path: &Path) -> Result<Entry, StorageError> {
        let metadata = std::fs::metadata(path).map_err(|source| failed("look at", path, source))?;
        Ok(Entry { location: path.to_owned().into(), size: metadata.len(), version: version(&metadata) })
    }

    /// Fills `bytes` from `offset` on.
    pub fn read_into(&self, path: &Path, offset: u64, bytes: &mut [u8]) -> Result<(), StorageError> {
        let file = self.file(path)?;
        file.read_exact_at(bytes, offset).map_err(|source| match (source.kind(), file.metadata()) {
            (io::ErrorKind::UnexpectedEof, Ok(metadata)) => StorageError::PastEnd {
                location: path.to_owned().into(),
                offset,
                end: offset.saturating_add(bytes.len() as u64),
                size: metadata.len(),
            },
            _ => failed("read", path, source),
        })
    }

    /// Reads a whole file, which is not held open.
    pub fn read_all(&self, path: &Path, bytes: &mut Vec<u8>) -> Result<(), StorageError> {
        bytes.clear();
        let read = File::open(path).and_then(|mut file| file.read_to_end(bytes));
        read.map(drop).map_err(|source| failed("read", path, source))
    }

    /// Fills each part from its offset on. The page cache is what brings neighbours together here.
    pub fn read(&self, path: &Path, parts: &mut [(u64, &mut [u8])]) -> Result<(), StorageError> {
        parts.iter_mut().try_for_each(|(offset, bytes)| self.read_into(path, *offset, bytes))
    }

    /// Writes a whole file: temporary name, sync, rename, sync of the folder.
    pub fn put(&self, path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
        let file = self.written(path, bytes)?;
        file.persist(path).map_err(|error| failed("rename to", path, error.error))?;
        self.forget(path);
        sync_folder(path)
    }

    /// As `put`, unless there is a file already.
    pub fn put_if_absent(&self, path: &Path, bytes: &[u8]) -> Result<bool, StorageError> {
        match self.written(path, bytes)?.persist_noclobber(path) {
            Ok(_) => sync_folder(path).map(|()| true),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(failed("create", path, error.error)),
        }
    }

    fn written(&self, path: &Path, bytes: &[u8]) -> Result<tempfile::NamedTempFile, StorageError> {
        let folder = folder(path);
        std::fs::create_dir_all(folder).map_err(|source| failed("create the folder", folder, source))?;
        let mut file =
            tempfile::NamedTempFile::new_in(folder).map_err(|source| failed("create a file in", folder, source))?;
        file.write_all(bytes)
            .and_then(|()| file.as_file().sync_all())
            .map_err(|source| failed("write", path, source))?;
        Ok(file)
    }

    /// Closes a file that has been replaced.
    pub fn forget(&self, path: &Path) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
    }

    fn file(&self, path: &Path) -> Result<Arc<File>, StorageError> {
        let lock = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = lock().get(path) {
            return Ok(file.clone());
        }
        let file = Arc::new(File::open(path).map_err(|source| failed("open", path, source))?);
        let mut open = lock();
        if open.len() >= OPEN {
            open.clear();
        }
        open.insert(path.to_owned(), file.clone());
        Ok(file)
    }
}

/// Modification time in nanoseconds, and the inode: a file that was renamed into place within the clock's step differs.
fn version(metadata: &Metadata) -> String {
    let nanoseconds = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    format!("{nanoseconds}-{}", metadata.ino())
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A name is safe once its folder is synced.
fn sync_folder(path: &Path) -> Result<(), StorageError> {
    let folder = folder(path);
    let sync = File::open(folder).and_then(|folder| folder.sync_all());
    sync.map_err(|source| failed("sync the folder", folder, source))
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> StorageError {
    if source.kind() == io::ErrorKind::NotFound {
        return StorageError::NotFound { location: Location::Local(path.to_owned()) };
    }
    StorageError::Io { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_are_sorted_and_none_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.tar", "a.tar", "c.txt"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        std::fs::create_dir(folder.path().join("d.tar")).unwrap();
        let local = Local::default();
        let found = local.list(&folder.path().join("*.tar")).unwrap();
        let names: Vec<_> = found.iter().map(|entry| (entry.location.name().to_owned(), entry.size)).collect();
        assert_eq!(names, [("a.tar".to_owned(), 5), ("b.tar".to_owned(), 5)]);
        assert_eq!(local.list(&folder.path().join("c.txt")).unwrap().len(), 1);
        for missing in ["*.zip", "x.tar", "no/such/*.tar"] {
            let error = local.list(&folder.path().join(missing)).unwrap_err().to_string();
            assert!(error.contains(missing), "{error}");
        }
    }

    #[test]
    fn a_read_past_the_end_says_where_the_file_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, b"0123456789").unwrap();
        let local = Local::default();
        let mut bytes = [0; 4];
        local.read_into(&path, 6, &mut bytes).unwrap();
        assert_eq!(&bytes, b"6789");
        let error = local.read_into(&path, 7, &mut bytes).unwrap_err();
        assert!(matches!(error, StorageError::PastEnd { offset: 7, end: 11, size: 10, .. }), "{error}");
        let gone = local.read_into(&folder.path().join("y"), 0, &mut bytes).unwrap_err();
        assert!(matches!(gone, StorageError::NotFound { .. }), "{gone}");
    }

    #[test]
    fn a_file_put_twice_is_read_as_the_second_and_put_if_absent_leaves_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/x");
        let local = Local::default();
        let mut bytes = [0; 2];
        for contents in [b"ab", b"cd"] {
            local.put(&path, contents).unwrap();
            local.read_into(&path, 0, &mut bytes).unwrap();
            assert_eq!(&bytes, contents);
        }
        assert!(!local.put_if_absent(&path, b"ef").unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"cd");
        assert!(local.put_if_absent(&folder.path().join("y"), b"ef").unwrap());
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "no temporary file is left: {names:?}");
    }
}
