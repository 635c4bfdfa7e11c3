//! What is wrong with a recipe, and where.

use std::fmt;

/// One thing that is wrong, at one place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct RecipeError {
    /// `configs/demo.toml:12`, or the override on the command line.
    pub place: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A line of the file, from 1.
    Line(usize),
    /// `--set KEY=VALUE`.
    Override(String),
}

/// Makes errors of one file.
#[derive(Debug, Clone)]
pub(super) struct File {
    name: String,
    /// What it is, as in `no key of …`.
    kind: &'static str,
}

impl File {
    pub(super) fn of_recipe(name: &str) -> Self {
        Self { name: name.to_owned(), kind: "a recipe" }
    }

    pub(super) fn of_settings(name: &str) -> Self {
        Self { name: name.to_owned(), kind: "these settings" }
    }

    pub(super) fn kind(&self) -> &'static str {
        self.kind
    }

    pub(super) fn error(&self, place: &Place, message: impl fmt::Display) -> RecipeError {
        let place = match place {
            Place::Line(line) => format!("{}:{line}", self.name),
            Place::Override(text) => format!("--set {text}"),
        };
        RecipeError { place, message: message.to_string() }
    }
}

/// Of `known`, the one that was probably meant.
pub(super) fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |name: &str| strsim::damerau_levenshtein(typed, name);
    let best = known.into_iter().min_by_key(|name| distance(name))?;
    (distance(best) <= 1 + best.len() / 3).then_some(best)
}
