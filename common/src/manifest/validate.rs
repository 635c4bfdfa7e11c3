//! What must hold in a manifest before a byte of its files is read.

use super::{Manifest, Part};
use crate::ids::{Rank, Step};
use std::collections::BTreeMap;

/// What is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is no JSON, or not of this form.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// Written by another version.
    #[error("its format is {0}, this program reads formats 1 to 3: update llm2clip")]
    Format(u32),
    /// It is cut, or its end is another's.
    #[error("it does not end with its digest: it is cut or damaged")]
    NoDigest,
    /// It is not what was written.
    #[error("it is damaged: its BLAKE3 digest is not the one at its end")]
    Damaged,
    /// A rank's file is missing from it, or listed twice.
    #[error("it lists {found} files for {world} ranks, rank {rank} is missing or doubled")]
    Ranks {
        /// How many files.
        found: usize,
        /// How many ranks.
        world: u32,
        /// The first rank that is not where it should be.
        rank: Rank,
    },
    /// A tensor does not fit.
    #[error("tensor `{tensor}` of {file}: {reason}")]
    Tensor {
        /// In which file.
        file: String,
        /// Which.
        tensor: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A file's name leads elsewhere.
    #[error("`{0}` is no plain file name")]
    FileName(String),
    /// It stands in another step's folder.
    #[error("it is of step {found} and stands in the folder of step {expected}")]
    Step {
        /// In the document.
        found: Step,
        /// By the folder.
        expected: Step,
    },
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// When it is not one, or what it says cannot be.
    pub fn parse(text: &str, expected: Step) -> Result<Self, ManifestError> {
        let manifest = Self::read(text)?;
        manifest.validate(expected)?;
        Ok(manifest)
    }

    fn validate(&self, expected: Step) -> Result<(), ManifestError> {
        if self.step != expected {
            return Err(ManifestError::Step { found: self.step, expected });
        }
        let world = self.world.0;
        let found = self.parts.len();
        let ranks =
            || Rank(self.parts.iter().zip(0..).find_map(|(part, r)| (part.rank != Rank(r)).then_some(r)).unwrap_or(0));
        if found != world as usize || self.parts.iter().zip(0..).any(|(part, r)| part.rank != Rank(r)) {
            return Err(ManifestError::Ranks { found, world, rank: ranks() });
        }
        let mut whole: BTreeMap<&str, (&str, &[u64])> = BTreeMap::new();
        for part in &self.parts {
            part.validate()?;
            for (name, entry) in &part.tensors {
                let kind = (entry.dtype.as_str(), entry.shape.as_slice());
                if *whole.entry(name).or_insert(kind) != kind {
                    return Err(part.wrong(name, "another rank has it with another type or shape"));
                }
            }
        }
        Ok(())
    }
}

impl Part {
    fn validate(&self) -> Result<(), ManifestError> {
        if self.file.is_empty() || self.file.contains('/') || self.file.starts_with('.') {
            return Err(ManifestError::FileName(self.file.clone()));
        }
        for (name, entry) in &self.tensors {
            if entry.offset.checked_add(entry.bytes).is_none_or(|end| end > self.bytes) {
                return Err(self.wrong(name, "its bytes end after the file's end"));
            }
        }
        Ok(())
    }

    fn wrong(&self, tensor: &str, reason: &'static str) -> ManifestError {
        ManifestError::Tensor { file: self.file.clone(), tensor: tensor.to_owned(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{Generation, WorldSize},
        manifest::{DataCursor, FORMAT, TensorEntry},
        sampler::OrderSpec,
    };

    fn manifest() -> Manifest {
        let part = |rank: u32| Part {
            rank: Rank(rank),
            file: super::super::paths::part_file(Rank(rank), Generation(3)),
            bytes: 100,
            blake3: "00".repeat(32),
            tensors: [(
                "param.w".to_owned(),
                TensorEntry { dtype: "F32".into(), shape: vec![5], offset: 80, bytes: 20 },
            )]
            .into(),
        };
        Manifest {
            format: FORMAT,
            job: "demo-1".parse().unwrap(),
            generation: Generation(3),
            step: Step(50),
            world: WorldSize(2),
            stage: "clip".into(),
            recipe_fingerprint: "ab".into(),
            data: DataCursor::new(&OrderSpec::plain(0, &[], 256), 12_800, |_| String::new()),
            parts: vec![part(0), part(1)],
        }
    }

    fn check(change: impl FnOnce(&mut Manifest), expected: &str) {
        let mut changed = manifest();
        change(&mut changed);
        let error = Manifest::parse(&changed.to_text(), Step(50)).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }

    #[test]
    fn a_whole_manifest_comes_back() {
        assert_eq!(Manifest::parse(&manifest().to_text(), Step(50)).unwrap(), manifest());
    }

    #[test]
    fn no_byte_of_it_may_be_another_or_missing() {
        let text = manifest().to_text();
        let refused = |bytes: Vec<u8>, what: &str| {
            let parsed = String::from_utf8(bytes).ok().map(|text| Manifest::parse(&text, Step(50)));
            assert!(parsed.is_none_or(|parsed| parsed.is_err()), "{what}");
        };
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut damaged = text.clone().into_bytes();
                damaged[at] ^= 1 << bit;
                refused(damaged, &format!("bit {bit} of byte {at}"));
            }
            refused(text.as_bytes()[..at].to_vec(), &format!("cut after {at} bytes"));
        }
    }

    #[test]
    fn whatever_cannot_be_is_named() {
        check(|m| m.step = Step(51), "of step 51");
        check(|m| m.world = WorldSize(3), "2 files for 3 ranks");
        check(|m| m.parts.swap(0, 1), "rank 0 is missing or doubled");
        check(|m| m.parts[1].file = "../x".into(), "no plain file name");
        check(|m| m.parts[1].bytes = 99, "param.w` of rank-00001-gen-00003.safetensors: its bytes end after");
        check(|m| m.parts[0].tensors.get_mut("param.w").unwrap().shape = vec![6], "another type or shape");
        let refused = |text: &str| Manifest::parse(text, Step(50)).unwrap_err();
        assert!(matches!(refused("{"), ManifestError::Unreadable(_)));
        assert_eq!(refused("{\"format\": 4}"), ManifestError::Format(4));
        assert_eq!(refused("{\"format\": 3}"), ManifestError::NoDigest);
        assert_eq!(refused(&manifest().to_text().replace("\"clip\"", "\"mntp\"")), ManifestError::Damaged);
    }
}
