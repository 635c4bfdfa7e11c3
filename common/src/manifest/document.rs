//! The bytes of `manifest.json`: JSON whose last field is the digest of all that stands before it, so that a manifest that storage
//! has damaged is no manifest, wherever the damage is.

use super::{FORMAT, Manifest, ManifestError, format_1};
use serde::{Deserialize, de::DeserializeOwned};

/// What stands between the body and the digest, and behind it.
const SEAL: (&str, &str) = (",\n  \"digest\": \"", "\"\n}\n");

/// What every version has.
#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

impl Manifest {
    /// The file's text, in this program's format.
    pub fn to_text(&self) -> String {
        let current = Self { format: FORMAT, ..self.clone() };
        let json = serde_json::to_string_pretty(&current).expect("a manifest is JSON");
        let body = json.strip_suffix("\n}").expect("an object ends so");
        format!("{body}{}{}{}", SEAL.0, blake3::hash(body.as_bytes()).to_hex(), SEAL.1)
    }

    /// A document of any version as this version has it.
    pub(super) fn read(text: &str) -> Result<Self, ManifestError> {
        let Versioned { format } = json(text)?;
        match format {
            1 => Ok(json::<format_1::Manifest>(text)?.into()),
            // As this one, without a digest.
            2 => Ok(Self { format: FORMAT, ..json(text)? }),
            FORMAT => json(&(unsealed(text)?.to_owned() + "\n}")),
            other => Err(ManifestError::Format(other)),
        }
    }
}

/// What stands before the digest, if it is what the digest is of.
fn unsealed(text: &str) -> Result<&str, ManifestError> {
    let sealed = text.strip_suffix(SEAL.1).and_then(|text| text.rsplit_once(SEAL.0));
    let (body, digest) = sealed.ok_or(ManifestError::NoDigest)?;
    let whole = blake3::hash(body.as_bytes()).to_hex().as_str() == digest;
    if whole { Ok(body) } else { Err(ManifestError::Damaged) }
}

fn json<T: DeserializeOwned>(text: &str) -> Result<T, ManifestError> {
    serde_json::from_str(text).map_err(|error| ManifestError::Unreadable(error.to_string()))
}
