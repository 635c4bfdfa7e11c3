//! Reads a model folder's `config.json`.

use super::ModelError;
use serde::de::DeserializeOwned;
use std::path::Path;

/// Reads `folder/config.json`. The error names the file and the field that is missing or not supported.
pub fn read<T: DeserializeOwned>(folder: &Path) -> Result<T, ModelError> {
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
    serde_json::from_str(&text).map_err(|source| ModelError::Config { path, source })
}

/// What a configuration must hold beyond its fields' types: `Err` says which field, its value, and what it should be.
pub(super) type Check = Result<(), String>;

/// Refuses sizes below one.
pub(super) fn positive(fields: &[(&str, i64)]) -> Check {
    match fields.iter().find(|(_, value)| *value < 1) {
        Some((field, value)) => Err(format!("{field} is {value}, but it must be 1 or more")),
        None => Ok(()),
    }
}

/// Refuses a size that another does not divide.
pub(super) fn divisible((of, size): (&str, i64), (by, divisor): (&str, i64)) -> Check {
    match size % divisor {
        0 => Ok(()),
        _ => Err(format!("{of} ({size}) must be divisible by {by} ({divisor})")),
    }
}

/// Refuses an architecture that this file does not describe.
pub(super) fn model_type(found: Option<&str>, known: &[&str]) -> Check {
    match found {
        Some(name) if !known.contains(&name) => {
            Err(format!("model_type {name:?} is not supported here; supported: {}", known.join(", ")))
        }
        _ => Ok(()),
    }
}
