//! Where checkpoints lie: `ROOT/STAGE/step-000001200/rank-00003-gen-00002.safetensors`, where the root is the job's output folder or what
//! its recipe names in its place, which may be an URL. What else a stage leaves is in the output folder.

use crate::ids::{Generation, Rank, Step};
use std::path::{Path, PathBuf};

/// The file that makes a folder a checkpoint.
pub const MANIFEST_FILE: &str = "manifest.json";

/// A stage's folder.
pub fn stage_folder(output: &Path, stage: &str) -> PathBuf {
    output.join(stage)
}

/// The PEFT folder that a stage leaves that trains LoRA.
pub fn tuned_adapter(output: &Path, stage: &str) -> PathBuf {
    stage_folder(output, stage).join("adapter")
}

/// The model folder that a stage leaves that trains all of the LLM's weights.
pub fn tuned_model(output: &Path, stage: &str) -> PathBuf {
    stage_folder(output, stage).join("model")
}

/// The folder that a stage leaves that trains the adapter alone: `model.safetensors` with its tensors by their names in a checkpoint.
pub fn distilled_adapter(output: &Path, stage: &str) -> PathBuf {
    stage_folder(output, stage).join("adapter")
}

/// A checkpoint's folder.
pub fn checkpoint_folder(root: &Path, stage: &str, step: Step) -> PathBuf {
    stage_folder(root, stage).join(step_folder(step))
}

/// The name of a checkpoint's folder in its stage's.
pub fn step_folder(step: Step) -> String {
    format!("step-{:09}", step.0)
}

/// The step of a folder's name; absent when it is no checkpoint's name.
pub fn parse_step_folder(name: &str) -> Option<Step> {
    let digits = name.strip_prefix("step-")?;
    (digits.len() >= 9 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// The name of a rank's file. A rank that was replaced may still write: not over the file of who has its place.
pub fn part_file(rank: Rank, generation: Generation) -> String {
    format!("rank-{:05}-gen-{:05}.safetensors", rank.0, generation.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_names_go_both_ways_and_others_are_no_checkpoints() {
        assert_eq!(step_folder(Step(1200)), "step-000001200");
        for step in [0, 7, 1200, 12_345_678_901] {
            assert_eq!(parse_step_folder(&step_folder(Step(step))), Some(Step(step)));
        }
        for name in ["step-12", "step-00000000x", "step-", "rank-000000000", "step-000001200.tmp"] {
            assert_eq!(parse_step_folder(name), None, "{name}");
        }
    }
}
