//! Patterns of shards: `*` and `?` in the last component of a path or URL.

use super::{DataError, blob::Found};
use crate::storage::{Location, Storage, StorageError, is_pattern, matches};
use common::recipe::DataPath;
use std::path::{Path, PathBuf};

/// The files or objects that match a pattern, sorted by name.
///
/// A pattern without `*` and `?` names one file, one object, or one folder of files: who wants no folder notices when it is read.
///
/// # Errors
/// When the folder or the store cannot be read or nothing matches.
pub fn expand(storage: &Storage, pattern: &DataPath) -> Result<Vec<Found>, DataError> {
    let location = Location::try_from(pattern)?;
    if let Location::Local(path) = &location {
        return Ok(files(path)?.into_iter().map(Found::File).collect());
    }
    // A name without an ending may be a folder's. Those of objects have none to be looked at, and some servers fail when it is tried.
    let has_no_ending = |location: &Location| !location.name().contains(['.', '*', '?']);
    if has_no_ending(&location) && storage.is_folder_of_objects(&location)? {
        return Err(DataError::FolderOfObjects { folder: location });
    }
    match storage.list(&location) {
        Ok(found) => Ok(found.into_iter().map(Found::Object).collect()),
        Err(StorageError::NoMatch { pattern }) => Err(DataError::NoMatch { pattern }),
        Err(error) => Err(error.into()),
    }
}

/// What LLM2CLIP's tars of text vectors end in. They lie beside the shards, and have no images.
pub const LLM2CLIP_VECTORS: &str = "_text_embeddings.tar";

/// As [`expand`], of several patterns one after the other, without LLM2CLIP's tars of text vectors.
pub fn expand_all(storage: &Storage, patterns: &[DataPath]) -> Result<Vec<Found>, DataError> {
    let mut found = Vec::new();
    for pattern in patterns {
        let matched = expand(storage, pattern)?;
        found.extend(matched.into_iter().filter(|found| !found.location().name().ends_with(LLM2CLIP_VECTORS)));
    }
    if found.is_empty() {
        return Err(DataError::NoMatch { pattern: Location::try_from(&patterns[0])? });
    }
    Ok(found)
}

/// As [`expand`], of files alone.
pub fn files(pattern: &Path) -> Result<Vec<PathBuf>, DataError> {
    let no_match = || DataError::NoMatch { pattern: pattern.to_owned().into() };
    let name = pattern.file_name().and_then(|name| name.to_str()).ok_or_else(no_match)?;
    if !is_pattern(name) {
        return if pattern.exists() { Ok(vec![pattern.to_owned()]) } else { Err(no_match()) };
    }
    let folder = match pattern.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let io = |source| DataError::io("list", &folder.to_owned().into(), source);
    if !folder.is_dir() {
        return Err(no_match());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let matched = entry.file_name().to_str().is_some_and(|file| matches(name, file));
        if matched && entry.path().is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    if found.is_empty() { Err(no_match()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_are_sorted_and_none_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.tar", "a.tar", "c.txt"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        std::fs::create_dir(folder.path().join("d.tar")).unwrap();
        let found = files(&folder.path().join("*.tar")).unwrap();
        assert_eq!(found, [folder.path().join("a.tar"), folder.path().join("b.tar")]);
        assert_eq!(files(&folder.path().join("c.txt")).unwrap(), [folder.path().join("c.txt")]);
        for missing in ["*.zip", "x.tar", "no/such/*.tar"] {
            let error = files(&folder.path().join(missing)).unwrap_err().to_string();
            assert!(error.contains(missing), "{error}");
        }
    }
}
