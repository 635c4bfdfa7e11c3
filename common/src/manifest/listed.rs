//! What `ckpt ls` and `ckpt verify` say of a checkpoint, whoever looked at it.

use crate::ids::{JobId, Step};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One checkpoint, or what there is of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its folder, or its URL.
    pub folder: PathBuf,
    /// The stage, by the folder above it.
    pub stage: String,
    /// The step, by its name.
    pub step: Step,
    /// Absent where no manifest says so.
    pub job: Option<JobId>,
    /// The membership that wrote it; 0 where no manifest says so.
    pub generation: u64,
    /// How many ranks wrote it.
    pub ranks: u32,
    /// How long all its files are.
    pub bytes: u64,
    /// What is wrong; absent when nothing was found to be.
    pub problem: Option<String>,
}

impl Listed {
    /// One of which nothing is known yet.
    pub fn new(folder: PathBuf, step: Step) -> Self {
        let stage = folder.parent().and_then(|stage| stage.file_name()).map(|name| name.to_string_lossy().into_owned());
        let (stage, job) = (stage.unwrap_or_default(), None);
        Self { folder, stage, step, job, generation: 0, ranks: 0, bytes: 0, problem: None }
    }

    /// Adds what its manifest says.
    pub fn describe(&mut self, manifest: &super::Manifest) {
        self.job = Some(manifest.job.clone());
        self.generation = manifest.generation.0;
        self.ranks = manifest.world.0;
        self.bytes = manifest.parts.iter().map(|part| part.bytes).sum();
        if self.stage != manifest.stage {
            let path = self.folder.join(super::paths::MANIFEST_FILE);
            self.problem = Some(format!("{} is of stage {}, not of this folder's", path.display(), manifest.stage));
        }
    }
}
