//! Broken images that the training meets: a line of JSON each in `OUTPUT/clip/broken-rank-000.jsonl`, and the first ones in
//! the log. After a resume the images of steps that are computed again are named again.

use super::Run;
use crate::{data::BrokenSample, trainer::error::TrainerError};
use common::{ids::Step, manifest::paths};
use std::{collections::BTreeMap, fs::File, io::Write as _};

/// How many are logged, too.
const LOGGED: u64 = 10;
/// How many of a data set an error names.
const EXAMPLES: usize = 5;

/// See the file's text. It is made when the first image is broken.
#[derive(Debug, Default)]
pub(super) struct BrokenFile {
    file: Option<File>,
    written: u64,
    /// The first of this rank by data set.
    examples: BTreeMap<String, Vec<String>>,
}

impl BrokenFile {
    /// A few of a data set that this rank met: the key and what the decoder said.
    pub(super) fn examples(&self, data: &str) -> &[String] {
        self.examples.get(data).map_or(&[], Vec::as_slice)
    }

    /// Writes down what was broken in a step.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn write(&mut self, run: &Run<'_, '_>, step: Step, broken: &[BrokenSample]) -> Result<(), TrainerError> {
        if broken.is_empty() {
            return Ok(());
        }
        let context = run.context;
        let name = format!("broken-rank-{:03}.jsonl", context.rank().0);
        let folder = paths::stage_folder(&context.plan.output, "clip");
        let path = folder.join(name);
        let failed = |source| TrainerError::Io { operation: "write", path: path.clone(), source };
        // Another rank makes it, too, some time.
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::options().create(true).append(true).open(&path).map_err(failed)?),
        };
        for sample in broken {
            let data = run.datasets[sample.wanted.source as usize].name();
            let line = serde_json::json!({
                "step": step, "data": data, "key": sample.key, "epoch": sample.wanted.epoch, "reason": sample.detail,
            });
            file.write_all(format!("{line}\n").as_bytes()).map_err(failed)?;
            self.written += 1;
            let examples = self.examples.entry(data.to_owned()).or_default();
            if examples.len() < EXAMPLES {
                examples.push(format!("{}: {}", sample.key, sample.detail));
            }
            if self.written <= LOGGED {
                let (key, reason) = (&sample.key, &sample.detail);
                tracing::warn!(data, key, reason, file = %path.display(), "a broken image was replaced by another");
            }
        }
        Ok(())
    }
}
