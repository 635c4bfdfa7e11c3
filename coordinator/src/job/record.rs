//! The stored form of a job: JSON with a version.

use super::JobState;
use common::recipe::Recipe;
use serde::{Deserialize, Serialize};

/// The version that is written.
const VERSION: u32 = 1;

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It is no JSON, or not of this form.
    #[error("it is no job record: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// Written by another version.
    #[error("its version is {0}, this program reads version {VERSION}: update llm2clip")]
    Version(u32),
}

#[derive(Deserialize)]
struct Head {
    version: u32,
}

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    #[serde(flatten)]
    job: &'a JobState,
}

/// A job as bytes.
pub fn encode(job: &JobState) -> Vec<u8> {
    serde_json::to_vec(&Written { version: VERSION, job }).expect("a job has string keys only")
}

/// A job from bytes.
///
/// # Errors
/// When they are not one, or are of another version.
pub fn decode(bytes: &[u8]) -> Result<JobState, RecordError> {
    let head: Head = serde_json::from_slice(bytes)?;
    if head.version != VERSION {
        return Err(RecordError::Version(head.version));
    }
    Ok(serde_json::from_slice(bytes)?)
}

/// BLAKE3 of the recipe's JSON, in hexadecimal.
pub fn fingerprint(recipe: &Recipe) -> String {
    let json = serde_json::to_vec(recipe).expect("a recipe has string keys only");
    blake3::hash(&json).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::fixture;

    #[test]
    fn a_job_comes_back_as_it_was() {
        let job = fixture::running(2);
        assert_eq!(decode(&encode(&job)).unwrap(), job);
    }

    #[test]
    fn another_version_is_named() {
        assert!(matches!(decode(br#"{"version": 2}"#), Err(RecordError::Version(2))));
        assert!(matches!(decode(b"{}"), Err(RecordError::Unreadable(_))));
    }
}
