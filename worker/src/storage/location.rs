//! Names of files and objects.

use super::StorageError;
use common::recipe::DataPath;
use serde::{Serialize, Serializer};
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// A file or an object, or a pattern of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Location {
    /// In a file system.
    Local(PathBuf),
    /// In an object store.
    Object(ObjectUrl),
}

/// Whose object store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// Amazon's, or one that speaks as it does.
    S3,
    /// Google's.
    Gs,
    /// Azure's.
    Az,
}

/// An object's name, `s3://bucket/key`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectUrl {
    /// Whose store.
    pub scheme: Scheme,
    /// The bucket; Azure says container.
    pub bucket: String,
    /// The name in it: components parted by `/`, none of them empty, `.` or `..`.
    pub key: String,
}

impl Location {
    /// Reads a path or an URL. What has no `://` is a path.
    ///
    /// # Errors
    /// When the scheme is none of `s3`, `gs` and `az`, or bucket or key are missing.
    pub fn parse(text: &str) -> Result<Self, StorageError> {
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(Self::Local(PathBuf::from(text))) };
        let wrong = |reason| StorageError::Location { text: text.to_owned(), reason };
        let scheme = match scheme {
            "s3" | "s3a" => Scheme::S3,
            "gs" => Scheme::Gs,
            "az" | "abfs" | "abfss" => Scheme::Az,
            "file" => return Ok(Self::Local(PathBuf::from(rest))),
            _ => return Err(wrong("it must be a path, or begin with s3://, gs:// or az://")),
        };
        let (bucket, key) = rest.split_once('/').ok_or_else(|| wrong("it names a bucket and no object in it"))?;
        if bucket.is_empty() {
            return Err(wrong("it names no bucket"));
        }
        if key.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(wrong("a part of its key is empty, `.` or `..`"));
        }
        Ok(Self::Object(ObjectUrl { scheme, bucket: bucket.to_owned(), key: key.to_owned() }))
    }

    /// A path that may be an URL in disguise, as recipes hold them.
    pub fn from_path(path: &Path) -> Result<Self, StorageError> {
        path.to_str().map_or_else(|| Ok(Self::Local(path.to_owned())), Self::parse)
    }

    /// The last component; empty for a path that has none.
    pub fn name(&self) -> &str {
        match self {
            Self::Local(path) => path.file_name().and_then(|name| name.to_str()).unwrap_or(""),
            Self::Object(url) => url.name(),
        }
    }

    /// The last component without its ending.
    pub fn stem(&self) -> String {
        match self {
            Self::Local(path) => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            Self::Object(url) => match url.name().rsplit_once('.') {
                Some((stem, _)) if !stem.is_empty() => stem.to_owned(),
                _ => url.name().to_owned(),
            },
        }
    }

    /// What a path in this folder means; a path that is absolute or an URL itself means what it says.
    ///
    /// # Errors
    /// When it is no name of an object.
    pub fn join(&self, relative: &str) -> Result<Self, StorageError> {
        match self {
            _ if relative.contains("://") => Self::parse(relative),
            Self::Local(path) => Ok(Self::Local(path.join(relative))),
            Self::Object(url) => {
                let relative = relative.trim_start_matches("./");
                Self::parse(&format!("{}/{relative}", url.to_string().trim_end_matches('/')))
            }
        }
    }

    /// The folder that it lies in: the file's, or what the key has before its last component.
    pub fn folder(&self) -> Self {
        match self {
            Self::Local(path) => Self::Local(path.parent().map(PathBuf::from).unwrap_or_default()),
            Self::Object(url) => {
                Self::Object(ObjectUrl { key: url.folder().unwrap_or_default().to_owned(), ..url.clone() })
            }
        }
    }

    /// What lies beside it under another name.
    pub fn sibling(&self, name: &str) -> Self {
        match self {
            Self::Local(path) => Self::Local(path.with_file_name(name)),
            Self::Object(url) => {
                let key = url.folder().map_or_else(|| name.to_owned(), |folder| format!("{folder}/{name}"));
                Self::Object(ObjectUrl { key, ..url.clone() })
            }
        }
    }
}

impl ObjectUrl {
    /// The key's last component.
    pub fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or(&self.key)
    }

    /// The key without its last component; `None` at the bucket's root.
    pub fn folder(&self) -> Option<&str> {
        self.key.rsplit_once('/').map(|(folder, _)| folder)
    }
}

impl TryFrom<&DataPath> for Location {
    type Error = StorageError;

    fn try_from(place: &DataPath) -> Result<Self, StorageError> {
        match place {
            DataPath::Path(path) => Ok(Self::Local(path.clone())),
            DataPath::Url(url) => Self::parse(url.trim_end_matches('/')),
        }
    }
}

/// As its text.
impl Serialize for Location {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<PathBuf> for Location {
    fn from(path: PathBuf) -> Self {
        Self::Local(path)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::S3 => "s3",
            Self::Gs => "gs",
            Self::Az => "az",
        })
    }
}

impl fmt::Display for ObjectUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/{}", self.scheme, self.bucket, self.key)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => write!(f, "{}", path.display()),
            Self::Object(url) => write!(f, "{url}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_paths_are_told_apart_and_written_as_they_were_read() {
        for text in ["s3://b/a/x.tar", "gs://b/x", "az://c/a/*.tar", "/data/a.tar", "a.tar", "a:b/c"] {
            assert_eq!(Location::parse(text).unwrap().to_string(), text);
        }
        assert!(matches!(Location::parse("a:b/c").unwrap(), Location::Local(_)));
        assert_eq!(Location::parse("s3a://b/x").unwrap().to_string(), "s3://b/x");
        assert_eq!(Location::parse("file:///d/x").unwrap(), Location::Local("/d/x".into()));
    }

    #[test]
    fn what_is_no_place_is_refused_with_the_reason() {
        for (text, reason) in [
            ("ftp://b/x", "begin with s3://"),
            ("s3://bucket", "no object"),
            ("s3:///x", "no bucket"),
            ("s3://b/a//x", "empty"),
            ("s3://b/../x", "empty, `.` or `..`"),
        ] {
            let error = Location::parse(text).unwrap_err().to_string();
            assert!(error.contains(text) && error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_sibling_lies_in_the_same_folder() {
        for (of, expected) in [("s3://b/a/x.tar", "s3://b/a/y"), ("s3://b/x.tar", "s3://b/y"), ("/d/x.tar", "/d/y")] {
            assert_eq!(Location::parse(of).unwrap().sibling("y").to_string(), expected);
        }
        assert_eq!(Location::parse("s3://b/a/x.tar").unwrap().name(), "x.tar");
    }

    #[test]
    fn a_path_in_a_folder_is_an_object_in_it_unless_it_says_where_it_is() {
        let join =
            |folder: &str, name: &str| Location::parse(folder).unwrap().join(name).map(|place| place.to_string());
        for (folder, name, expected) in [
            ("s3://b/a", "val/1.jpg", "s3://b/a/val/1.jpg"),
            ("s3://b/a", "./1.jpg", "s3://b/a/1.jpg"),
            ("s3://b/a", "gs://c/1.jpg", "gs://c/1.jpg"),
            ("/d", "val/1.jpg", "/d/val/1.jpg"),
            ("/d", "/e/1.jpg", "/e/1.jpg"),
            ("/d", "s3://b/1.jpg", "s3://b/1.jpg"),
        ] {
            assert_eq!(join(folder, name).unwrap(), expected);
        }
        assert!(join("s3://b/a", "../1.jpg").is_err());
        let root = Location::parse("s3://b/list.csv").unwrap().folder();
        assert_eq!(root.join("1.jpg").unwrap().to_string(), "s3://b/1.jpg");
        assert_eq!(Location::parse("s3://b/a/x.y.tar").unwrap().stem(), "x.y");
    }
}
