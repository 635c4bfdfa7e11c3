//! Settings of a program in a TOML file: the names of its flags, with `_` for `-`. What is wrong is told as of a recipe: file,
//! line, key, and what was probably meant.

use super::{
    RecipeError,
    error::File,
    raw::{self, Table},
    read,
};
use std::{fmt::Display, path::PathBuf, str::FromStr};

/// Reads a file of settings. `file` is what it is called in errors; `settings` takes the keys that it knows, and what it leaves is
/// an error.
///
/// # Errors
/// The first thing that is wrong, with file, line and key.
pub fn parse<T>(
    file: &str,
    text: &str,
    settings: impl FnOnce(&mut Settings<'_>) -> Result<T, RecipeError>,
) -> Result<T, RecipeError> {
    let file = File::of_settings(file);
    let root = raw::document(&file, text)?;
    let mut keys = Settings(Table::of(&file, "", root)?);
    let read = settings(&mut keys)?;
    keys.0.finish()?;
    Ok(read)
}

/// The keys of the file; each may be absent.
pub struct Settings<'f>(Table<'f>);

impl Settings<'_> {
    /// A string.
    ///
    /// # Errors
    /// When it is none, or empty.
    pub fn text(&mut self, key: &'static str) -> Result<Option<String>, RecipeError> {
        self.0.get(key, read::text)
    }

    /// A path, taken as it is written.
    ///
    /// # Errors
    /// When it is no string, or empty.
    pub fn path(&mut self, key: &'static str) -> Result<Option<PathBuf>, RecipeError> {
        Ok(self.text(key)?.map(PathBuf::from))
    }

    /// A string that is one of these.
    ///
    /// # Errors
    /// When it is no string, or cannot be read.
    pub fn parsed<T: FromStr<Err: Display>>(&mut self, key: &'static str) -> Result<Option<T>, RecipeError> {
        let parse = |text: String| text.parse().map_err(|error| format!("is `{text}`: {error}"));
        self.0.get(key, |value| read::text(value).and_then(parse))
    }

    /// A whole number of at least 0.
    ///
    /// # Errors
    /// When it is none, or too large.
    pub fn number<T: TryFrom<u64>>(&mut self, key: &'static str) -> Result<Option<T>, RecipeError> {
        let fit = |number: u64| T::try_from(number).map_err(|_| format!("is {number}, which is too large"));
        self.0.get(key, |value| read::unsigned(value).and_then(fit))
    }

    /// A truth value.
    ///
    /// # Errors
    /// When it is none.
    pub fn truth(&mut self, key: &'static str) -> Result<Option<bool>, RecipeError> {
        self.0.get(key, read::boolean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    type All = (Option<SocketAddr>, Option<u32>, Option<bool>, Option<PathBuf>);

    fn read(text: &str) -> Result<All, String> {
        let keys = |keys: &mut Settings<'_>| {
            Ok((keys.parsed("listen")?, keys.number("trainers")?, keys.truth("log_json")?, keys.path("state")?))
        };
        parse("c.toml", text, keys).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_is_read_and_the_rest_is_absent() {
        let found = read("listen = '[::1]:7'\ntrainers = 3\nlog_json = true").unwrap();
        assert_eq!(found, (Some("[::1]:7".parse().unwrap()), Some(3), Some(true), None));
        assert_eq!(read(""), Ok((None, None, None, None)));
    }

    #[test]
    fn what_is_wrong_is_told_with_file_line_and_key() {
        let check = |text: &str, expected: &str| assert_eq!(read(text).unwrap_err(), expected);
        check("\nlisten_ = ':7'", "c.toml:2: `listen_` is no key of these settings; did you mean `listen`?");
        check(
            "[serve]",
            "c.toml:1: `serve` is no key of these settings; known keys: listen, trainers, log_json, state",
        );
        check("listen = 'here'", "c.toml:1: `listen` is `here`: invalid socket address syntax");
        check("trainers = 5000000000", "c.toml:1: `trainers` is 5000000000, which is too large");
        check("trainers = -1", "c.toml:1: `trainers` is -1, it must be 0 or more");
        check("log_json = 1", "c.toml:1: `log_json` must be true or false, not an integer");
    }
}
