//! Where data lies: in a file system, or in an object store.

use super::read::plain;
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

/// What an URL of data may begin with.
const SCHEMES: [&str; 6] = ["s3", "s3a", "gs", "az", "abfs", "abfss"];

/// A path, or the URL of objects such as `s3://bucket/folder/*.tar`; a pattern, where one is wanted. In documents it is
/// the text alone: what has `://` in it is an URL, and `file://` is a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PathBuf", into = "PathBuf")]
pub enum DataPath {
    /// In a file system; absolute in a recipe.
    Path(PathBuf),
    /// In an object store, as it was typed.
    Url(String),
}

impl DataPath {
    /// As a recipe writes it: a path is relative to `folder`, an URL to nothing.
    ///
    /// # Errors
    /// What is wrong with an URL, to be written behind the key's name.
    pub(super) fn read(text: &str, folder: &Path) -> Result<Self, String> {
        let text = text.strip_prefix("file://").unwrap_or(text);
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(Self::Path(plain(&folder.join(text)))) };
        if !SCHEMES.contains(&scheme) {
            return Err(format!("is `{text}`, it must be a path or begin with s3://, gs:// or az://"));
        }
        if !rest.split_once('/').is_some_and(|(bucket, key)| !bucket.is_empty() && !key.is_empty()) {
            return Err(format!("is `{text}`, it must name a bucket and what is in it: {scheme}://BUCKET/KEY"));
        }
        Ok(Self::Url(text.to_owned()))
    }

    /// As its text, in which `join` adds a folder to an URL, too.
    pub fn as_path(&self) -> &Path {
        match self {
            Self::Path(path) => path,
            Self::Url(url) => Path::new(url),
        }
    }

    /// Whether it lies in an object store.
    pub fn is_url(&self) -> bool {
        matches!(self, Self::Url(_))
    }
}

/// Whether a path is an URL in disguise.
pub fn is_url(path: &Path) -> bool {
    DataPath::from(path.to_owned()).is_url()
}

impl From<PathBuf> for DataPath {
    fn from(path: PathBuf) -> Self {
        match path.to_str() {
            Some(text) => match text.strip_prefix("file://") {
                Some(path) => Self::Path(path.into()),
                None if text.contains("://") => Self::Url(text.to_owned()),
                None => Self::Path(path),
            },
            None => Self::Path(path),
        }
    }
}

impl From<OsString> for DataPath {
    fn from(text: OsString) -> Self {
        PathBuf::from(text).into()
    }
}

impl From<&str> for DataPath {
    fn from(text: &str) -> Self {
        PathBuf::from(text).into()
    }
}

impl From<DataPath> for PathBuf {
    fn from(place: DataPath) -> Self {
        match place {
            DataPath::Path(path) => path,
            DataPath::Url(url) => url.into(),
        }
    }
}

impl fmt::Display for DataPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Url(url) => f.write_str(url),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, String> {
        DataPath::read(text, Path::new("/home/me/configs")).map(|place| place.to_string())
    }

    #[test]
    fn a_path_is_made_absolute_and_an_url_stays_as_it_was_typed() {
        for (text, expected) in [
            ("../data/*.tar", "/home/me/data/*.tar"),
            ("/data/a.tar", "/data/a.tar"),
            ("s3://bucket/a/../*.tar", "s3://bucket/a/../*.tar"),
            ("gs://bucket/x", "gs://bucket/x"),
            ("file:///data/a.tar", "/data/a.tar"),
        ] {
            assert_eq!(read(text).unwrap(), expected);
        }
        for (text, expected) in [
            ("http://host/a.tar", "begin with s3://, gs:// or az://"),
            ("s3://bucket", "s3://BUCKET/KEY"),
            ("s3://bucket/", "s3://BUCKET/KEY"),
            ("s3:///key", "s3://BUCKET/KEY"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(text) && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn in_a_document_it_is_its_text() {
        for place in [DataPath::Path("/data/*.tar".into()), DataPath::Url("s3://bucket/*.tar".to_owned())] {
            let json = serde_json::to_string(&place).unwrap();
            assert_eq!(json, format!("\"{place}\""));
            assert_eq!(serde_json::from_str::<DataPath>(&json).unwrap(), place);
        }
    }
}
