//! What is wrong with the input is said in one paragraph: what, where, what to do. Nothing panics.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, path::PathBuf, process::Command};
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
fn a_model_folder_that_is_not_there_is_told_by_its_key_and_what_it_is_for() {
    let (code, text) = fails(&Recipe { vision: "/nowhere/vit".into(), ..Recipe::default() });
    assert_eq!(code, Some(1), "{text}");
    for part in ["`model.vision.folder` is /nowhere/vit", "It is to hold the vision tower", "run that job first"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn a_config_that_is_none_is_named_with_its_field() {
    let (folder, _) = scratch("config.json", b"{\"hidden_size\": 192}");
    let (code, text) = fails(&Recipe { vision: folder.path().to_owned(), ..Recipe::default() });
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("config.json"), "{text}");
}

#[test]
fn a_config_for_another_width_than_its_weights_names_tensor_and_shapes() {
    let model = data("../../golden/model/vit");
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    let (folder, _) = scratch("config.json", config.replace("\"hidden_size\": 32", "\"hidden_size\": 48").as_bytes());
    fs::copy(model.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let recipe = Recipe { vision: folder.path().to_owned(), init: "pretrained", ..Recipe::default() };
    let (code, text) = fails(&recipe);
    assert_eq!(code, Some(1), "{text}");
    for part in ["model.safetensors", "vision_model.", "48", "32", "config.json"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn a_checkpoint_of_another_width_than_the_recipe_names_tensor_and_shapes() {
    let (folder, _) = scratch("config.json", &fs::read(Recipe::default().vision.join("config.json")).unwrap());
    let recipe = Recipe { steps: 8, vision: folder.path().to_owned(), ..Recipe::default() };
    let job = Job::new(&recipe);
    let run = job.start(1);
    job.wait_for_checkpoint(4);
    let (code, text) = job.say(&["stop"]);
    assert_eq!(code, Some(0), "{text}");
    drop(run.wait_with_output());
    let path = folder.path().join("config.json");
    let narrower =
        fs::read_to_string(&path).unwrap().replace("\"intermediate_size\": 128", "\"intermediate_size\": 96");
    fs::write(&path, narrower).unwrap();
    let (code, text) = job.say(&["resume"]);
    assert_eq!(code, Some(1), "{text}");
    for part in ["mlp.fc1", "128", "96", "config.json"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn a_png_named_jpg_is_used_and_an_empty_image_is_skipped_counted_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let tar = |arguments: &[&str]| {
        assert!(Command::new("tar").args(arguments).current_dir(folder.path()).status().unwrap().success());
    };
    tar(&["-xf", data("emoji-wds/train/00000.tar").to_str().unwrap()]);
    let mut images: Vec<PathBuf> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    images.retain(|path| path.extension().is_some_and(|extension| extension == "jpg"));
    images.sort();
    fs::copy(data("../../golden/data/images/rgb.png"), &images[0]).unwrap();
    fs::write(&images[1], b"").unwrap();
    tar(&["-cf", "broken.tar", "--sort=name", "--exclude=broken.tar", "."]);

    let shards = folder.path().join("broken.tar");
    let empty = images[1].file_stem().unwrap().to_str().unwrap();
    let job = Job::new(&Recipe { shards: shards.clone(), steps: 3, every_steps: 3, ..Recipe::default() });
    let output = job.llm2clip(&["data", "inspect", shards.to_str().unwrap(), "-o", "json"]);
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["samples"].as_u64().unwrap(), images.len() as u64, "{summary}");
    assert_eq!(summary["usable"].as_u64().unwrap(), images.len() as u64 - 1, "{summary}");
    assert_eq!(summary["images"]["png"], 1, "{summary}");
    assert!(summary.to_string().contains(empty), "{summary}");
    job.run(1);
    let (_, logs) = job.say(&["logs"]);
    assert!(logs.contains("skipped=1"), "{logs}");
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
    let name = job.manifest("clip/step-000000004")["parts"][0]["file"].as_str().unwrap().to_owned();
    let part = job.output().join("clip/step-000000004").join(&name);
    let mut bytes = fs::read(&part).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&part, bytes).unwrap();
    let output = job.llm2clip(&["ckpt", "verify", job.output().to_str().unwrap()]);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&name), "{text}");
}
