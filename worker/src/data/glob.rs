//! Patterns of shards: `*` and `?` in the last component of a path.

use super::DataError;
use std::path::{Path, PathBuf};

/// The files that match a pattern, sorted by name.
///
/// A pattern without `*` and `?` names one file, or one folder: who wants no folder notices when it is read.
///
/// # Errors
/// When the folder cannot be read or nothing matches.
pub fn expand(pattern: &Path) -> Result<Vec<PathBuf>, DataError> {
    let no_match = || DataError::NoMatch { pattern: pattern.to_owned() };
    let name = pattern.file_name().and_then(|name| name.to_str()).ok_or_else(no_match)?;
    if !name.contains(['*', '?']) {
        return if pattern.exists() { Ok(vec![pattern.to_owned()]) } else { Err(no_match()) };
    }
    let folder = match pattern.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let io = |source| DataError::Io { operation: "list", path: folder.to_owned(), source };
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

/// Whether `name` matches: `*` stands for any characters, `?` for one. A leading dot must be written out.
fn matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // The last star and how far it reached: where to go on after a mismatch.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, reached)) = star else { return false };
                star = Some((at, reached + 1));
                p = at + 1;
                n = reached + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, name, expected) in [
            ("*.tar", "00000.tar", true),
            ("*.tar", "00000.tar.gz", false),
            ("0000?.tar", "00007.tar", true),
            ("0000?.tar", "000007.tar", false),
            ("a*b*c", "axxbxbxc", true),
            ("a*b*c", "axxbxbx", false),
            ("*", ".hidden.tar", false),
            ("*", "", true),
            ("?", "é", true),
            ("a.tar", "a.tar", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} on {name}");
        }
    }

    #[test]
    fn matches_are_sorted_and_none_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.tar", "a.tar", "c.txt"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        std::fs::create_dir(folder.path().join("d.tar")).unwrap();
        let found = expand(&folder.path().join("*.tar")).unwrap();
        assert_eq!(found, [folder.path().join("a.tar"), folder.path().join("b.tar")]);
        assert_eq!(expand(&folder.path().join("c.txt")).unwrap(), [folder.path().join("c.txt")]);
        for missing in ["*.zip", "x.tar", "no/such/*.tar"] {
            let error = expand(&folder.path().join(missing)).unwrap_err().to_string();
            assert!(error.contains(missing), "{error}");
        }
    }
}
