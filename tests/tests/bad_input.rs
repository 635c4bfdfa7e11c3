//! What is wrong with the input is said in one paragraph: what, where, what to do. Nothing panics.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, path::PathBuf};
use tests::{Job, Recipe, data};

/// Runs a recipe that must fail; returns the exit code and everything that was said.
fn fails(recipe: &Recipe) -> (Option<i32>, String) {
    let job = Job::new(recipe);
    let output = job.llm2clip(&["run", job.recipe().to_str().unwrap()]);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success(), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    (output.status.code(), text)
}

fn scratch(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

#[test]
fn a_typo_in_the_recipe_names_line_key_and_the_nearest_key() {
    let (code, text) = fails(&Recipe { clip: "precison = \"fp32\"".to_owned(), ..Recipe::default() });
    assert_eq!(code, Some(2), "{text}");
    for part in ["recipe.toml", "precison", "precision"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn a_missing_tar_is_named() {
    let (code, text) = fails(&Recipe { shards: "/nowhere/00000.tar".into(), ..Recipe::default() });
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("/nowhere/00000.tar"), "{text}");
}

#[test]
fn a_caption_table_without_the_key_column_names_the_columns_there_are() {
    let (code, text) = fails(&Recipe { key: "sample_id".to_owned(), ..Recipe::default() });
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("sample_id") && text.contains("long_caption"), "{text}");
}

#[test]
fn weights_of_another_width_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), "{\"hidden_size\": 192}").unwrap();
    let (code, text) = fails(&Recipe { vision: folder.path().to_owned(), ..Recipe::default() });
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("config.json"), "{text}");
}

#[test]
fn a_truncated_tar_is_used_up_to_its_end_and_told_of() {
    let whole = fs::read(data("emoji-wds/train/00000.tar")).unwrap();
    let (folder, path) = scratch("00000.tar", &whole[..whole.len() * 2 / 3 + 100]);
    let recipe = Recipe { shards: path, steps: 3, every_steps: 3, ..Recipe::default() };
    let job = Job::new(&recipe);
    let output = job.llm2clip(&["data", "inspect", folder.path().join("00000.tar").to_str().unwrap()]);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    assert!(text.contains("truncated"), "{text}");
    job.run(1);
    assert_eq!(job.steps().len(), 3);
}

#[test]
fn a_flipped_byte_in_a_checkpoint_is_found_and_named() {
    let job = Job::new(&Recipe { steps: 4, ..Recipe::default() });
    job.run(1);
    let (code, text) = {
        let output = job.llm2clip(&["ckpt", "verify", job.output().to_str().unwrap()]);
        (
            output.status.code(),
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        )
    };
    assert_eq!(code, Some(0), "{text}");
    let part = job.output().join("clip/step-000000004/rank-00000.safetensors");
    let mut bytes = fs::read(&part).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&part, bytes).unwrap();
    let output = job.llm2clip(&["ckpt", "verify", job.output().to_str().unwrap()]);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("rank-00000.safetensors"), "{text}");
}
