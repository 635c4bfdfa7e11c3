//! Where indices and joins are kept, and how they are written: whole or not at all.

use crate::storage::Location;
use common::recipe::IndexPlace;
use std::{
    fs::{self, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// What the file of a shard's index ends in.
const EXTENSION: &str = "l2c";

/// The folders of a data set's indices, the preferred one first.
#[derive(Debug, Clone)]
pub struct Places {
    beside: bool,
    folder: Option<PathBuf>,
}

impl Places {
    /// As the recipe says. The cache folder is `LLM2CLIP_CACHE`, else `XDG_CACHE_HOME/llm2clip`, else `~/.cache/llm2clip`.
    pub fn new(place: &IndexPlace) -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = || {
            let home = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
            Some(set("LLM2CLIP_CACHE").or_else(|| Some(home()?.join("llm2clip")))?.join("index"))
        };
        match place {
            IndexPlace::Cache => Self { beside: false, folder: cache() },
            IndexPlace::Beside => Self { beside: true, folder: cache() },
            IndexPlace::Folder(folder) => Self { beside: false, folder: Some(folder.clone()) },
        }
    }

    /// Beside the shards, with this folder in place of the user's cache.
    #[cfg(test)]
    pub fn beside_with_cache(folder: PathBuf) -> Self {
        Self { beside: true, folder: Some(folder) }
    }

    /// The files that may hold a shard's index, in the order in which they are tried.
    pub fn of_shard(&self, shard: &Location) -> Vec<PathBuf> {
        let (name, place) = match shard {
            Location::Local(path) => {
                let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                (absolute.file_name().unwrap_or_default().to_string_lossy().into_owned(), absolute)
            }
            Location::Object(url) => (url.name().to_owned(), url.to_string().into()),
        };
        let mut files = Vec::new();
        if self.beside && matches!(shard, Location::Local(_)) {
            files.push(place.with_file_name(format!("{name}.{EXTENSION}")));
        }
        let digest = blake3::hash(place.as_os_str().as_encoded_bytes()).to_hex();
        files.extend(self.folder.iter().map(|folder| folder.join(format!("{name}-{}.{EXTENSION}", &digest[..16]))));
        files
    }

    /// The object that an object's index is copied to for other machines; each reads its own copy in the cache folder.
    pub fn beside_object(&self, shard: &Location) -> Option<Location> {
        let object = matches!(shard, Location::Object(_));
        (self.beside && object).then(|| shard.sibling(&format!("{}.{EXTENSION}", shard.name())))
    }

    /// The folder of what belongs to a whole data set; `None` when there is neither a home nor a folder.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }
}

/// A file that is being written and gets its name when it is complete.
pub struct Draft {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Draft {
    /// Begins a file beside where it will be; the folder is made.
    pub fn new(path: &Path) -> io::Result<Self> {
        let folder = path.parent().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidFilename))?;
        fs::create_dir_all(folder)?;
        // What others on shared storage may read is their umask's business.
        let everyone = Permissions::from_mode(0o666);
        let file = tempfile::Builder::new().prefix(".draft-").permissions(everyone).tempfile_in(folder)?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// What is written to.
    pub fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Brings everything to the disk and gives it its name.
    pub fn publish(self) -> io::Result<()> {
        self.file.as_file().sync_all()?;
        self.file.persist(&self.path).map_err(|error| error.error)?;
        self.path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }
}

/// Writes a small file whole or not at all.
pub fn publish(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = Draft::new(path)?;
    draft.file().write_all(bytes)?;
    draft.publish()
}
