//! Stage `eval` over captions alone and over images with several captions, by the real programs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use serde_json::{Value, json};
use std::{fs, path::Path, process::Command};
use tests::{Job, Recipe, data};

/// A job of this recipe; `OUTPUT`, `MODELS` and `DATA` stand for the folders.
fn job(recipe: &str) -> Job {
    let job = Job::new(&Recipe::default());
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/models");
    let text = recipe.replace("OUTPUT", job.output().to_str().unwrap()).replace("MODELS", models.to_str().unwrap());
    fs::write(job.recipe(), text.replace("DATA", data("").to_str().unwrap())).unwrap();
    job
}

fn results(job: &Job) -> Value {
    serde_json::from_slice(&fs::read(job.output().join("eval/results.json")).unwrap()).unwrap()
}

const CAPTIONS_ALONE: &str = r#"name = "captions"
seed = 7
output = "OUTPUT"

[data.val]
kind = "webdataset"
shards = "DATA/emoji-wds/val/*.tar"
captions = { table = "DATA/emoji-dense-val.parquet", key = "key", columns = { ".txt" = 1, long_caption = 1 } }

[model.text]
folder = "MODELS/llama-tiny"
init = "random"
max_length = 64

[[stage]]
kind = "embed"
data = "val"

[[stage]]
kind = "eval"
data = "val"
image_retrieval = false
caption_retrieval = [[".txt", "long_caption"]]
"#;

#[test]
fn captions_are_ranked_against_captions_without_any_vision_model_by_any_number_of_workers() {
    let mut all = Vec::new();
    for workers in [1, 3] {
        let job = job(CAPTIONS_ALONE);
        job.run(workers);
        let results = results(&job);
        assert_eq!(results["checkpoint_step"], Value::Null);
        assert_eq!(results["retrieval"], json!([]));
        let found = results["caption_retrieval"].as_array().unwrap().clone();
        let directions: Vec<&str> = found.iter().map(|figures| figures["direction"].as_str().unwrap()).collect();
        assert_eq!(directions, [".txt to long_caption", "long_caption to .txt"]);
        // Far above chance, which is 1 in 320.
        assert!(found[0]["recall_at_1"].as_f64().unwrap() > 0.1, "{found:?}");
        let text = fs::read_to_string(job.output().join("eval/results.md")).unwrap();
        assert!(text.contains("| val | .txt, long_caption | .txt to long_caption | 320 | 320 | 0 |"), "{text}");
        all.push(found);
    }
    assert_eq!(all[0], all[1], "one worker and three");
}

#[test]
fn a_pair_that_no_data_set_has_is_told_with_the_columns_there_are() {
    let job = job(&CAPTIONS_ALONE.replace("\"long_caption\"]", "\"long_captoin\"]"));
    let output = job.llm2clip(&["run", job.recipe().to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    for part in ["caption_retrieval", "long_captoin", ".txt, long_caption", "did you mean `long_caption`?"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

/// The images of a shard and a list of them, with two captions each and a third for every other one.
fn list_of_several(folder: &Path) -> (u64, u64) {
    let shard = data("emoji-wds/val/00000.tar");
    assert!(Command::new("tar").args(["-xf", shard.to_str().unwrap()]).current_dir(folder).status().unwrap().success());
    let mut keys: Vec<String> = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        keys.extend(name.strip_suffix(".jpg").map(str::to_owned));
    }
    keys.sort();
    let (mut rows, mut texts) = (Vec::new(), 0);
    for (number, key) in keys.iter().enumerate() {
        let first = fs::read_to_string(folder.join(format!("{key}.txt"))).unwrap();
        let mut captions = vec![first.clone(), format!("a picture of {first}")];
        captions.extend((number % 2 == 0).then(|| format!("{first}, drawn small")));
        texts += captions.len() as u64;
        rows.push(json!({ "image": format!("{key}.jpg"), "captions": captions }));
    }
    fs::write(folder.join("list.json"), serde_json::to_vec(&rows).unwrap()).unwrap();
    (keys.len() as u64, texts)
}

const SEVERAL: &str = r#"name = "several"
seed = 7
output = "OUTPUT"

[data.pictures]
kind = "list"
shards = "LIST/list.json"
captions = { columns = { ".captions[*]" = 1 } }
benchmark = "coco"

[model.text]
folder = "MODELS/llama-tiny"
init = "random"
max_length = 64

[model.vision]
folder = "MODELS/vit-tiny"
init = "random"

[model.adapter]
blocks = 1

[[stage]]
kind = "embed"
data = "pictures"

[[stage]]
kind = "clip"
data = "pictures"
global_batch = 16
steps = 2
optimizer = { learning_rate = 1e-3 }

[[stage]]
kind = "eval"
data = "pictures"
caption_retrieval = [[".captions[0]", ".captions[1]"], [".captions[0]", ".captions[2]"]]
"#;

#[test]
fn every_caption_of_an_image_is_a_query_and_any_of_them_finds_it() {
    let folder = tempfile::tempdir().unwrap();
    let (images, texts) = list_of_several(folder.path());
    let job = job(&SEVERAL.replace("LIST", folder.path().to_str().unwrap()));
    job.run(2);
    let results = results(&job);
    let counts = |figures: &Value| (figures["queries"].as_u64().unwrap(), figures["targets"].as_u64().unwrap());
    assert_eq!(counts(&results["retrieval"][0]), (images, texts));
    assert_eq!(counts(&results["retrieval"][1]), (texts, images));
    // The third caption is every other image's.
    let captions = results["caption_retrieval"].as_array().unwrap();
    assert_eq!(counts(&captions[0]), (images, images));
    assert_eq!(captions[2]["left_out"].as_u64().unwrap(), images / 2);
    let text = fs::read_to_string(job.output().join("eval/results.md")).unwrap();
    for part in [
        "## COCO 5K beside the paper's rows",
        "| CLIP B/16 | 52.4 % | 33.1 % |",
        "| Llama-3-8B, caption-contrastive | 29.5 % |",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}
