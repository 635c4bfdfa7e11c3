//! The adapter's warm start from CLIP's text tower, through the programs: it learns, `clip` begins with what it left, a killed one
//! goes on with the same losses in every bit, and the number of workers changes nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use safetensors::SafeTensors;
use std::{collections::BTreeMap, fs, path::Path};
use tests::{Job, Recipe, losses, model};

/// A random teacher of the demo's; chunks that are smaller than a rank's share; `clip` leaves the adapter as it is.
fn recipe() -> Recipe {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/models");
    let distill = r#"
[[stage]]
kind = "distill"
data = "train"
global_batch = 64
chunk = 24
steps = 24
tail = "carry"
optimizer = { learning_rate = 2e-3, clip_norm = 10.0 }
schedule = { warmup_steps = 2 }
checkpoint = { every_steps = 8, keep = 2 }
"#;
    Recipe {
        vision: model("vit-tiny"),
        data: format!("[model.teacher]\nfolder = {:?}\ninit = \"random\"", models.join("clip-text-tiny")),
        before_clip: distill.to_owned(),
        steps: 3,
        clip: "lock = { adapter = true }".to_owned(),
        ..Recipe::default()
    }
}

fn both(job: &Job) -> BTreeMap<&'static str, BTreeMap<u64, f64>> {
    ["distill", "clip"].map(|stage| (stage, losses(&job.steps_of(stage)))).into()
}

/// The adapter's tensors in a folder's safetensors, as they are on disk, by their names behind `prefix`.
fn adapter(folder: &Path, prefix: &str) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            let bytes = fs::read(&path).unwrap();
            for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().iter() {
                let name = name.strip_prefix(prefix).filter(|name| name.starts_with("adapter."));
                all.extend(name.map(|name| (name.to_owned(), tensor.data().to_vec())));
            }
        }
    }
    all
}

#[test]
fn a_killed_warm_start_resumes_bitwise_and_clip_begins_with_the_adapter_that_it_left() {
    let (job, undisturbed) = (Job::new(&recipe()), Job::new(&recipe()));
    let mut run = job.command(&["run", job.recipe().to_str().unwrap(), "--workers", "2"]);
    let ended = run.env("LLM2CLIP_FAILPOINTS", "distill.step=kill@13").output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", String::from_utf8_lossy(&ended.stderr));
    let (code, said) = job.say(&["resume"]);
    assert_eq!(code, Some(0), "{said}");

    undisturbed.run(2);
    let (found, expected) = (both(&job), both(&undisturbed));
    assert_eq!(expected.values().map(BTreeMap::len).collect::<Vec<_>>(), [3, 24]);
    assert_eq!(found, expected);
    let distilled = &expected["distill"];
    assert!(distilled[&24] < 0.8 * distilled[&1], "it has not learned: {distilled:?}");

    let [left, other] = [&undisturbed, &job].map(|job| adapter(&job.output().join("distill/adapter"), ""));
    assert!(left.len() > 6 && left == other, "the adapter differs");
    assert!(adapter(&undisturbed.output().join("clip/step-000000003"), "param.") == left, "`clip` began with another");
    assert!(undisturbed.output().join("embed-teacher/train").is_dir());
}

#[test]
fn one_worker_and_three_give_the_same_losses() {
    let (one, three) = (Job::new(&recipe()), Job::new(&recipe()));
    one.run(1);
    three.run(3);
    let (one, three) = (both(&one), both(&three));
    for (stage, losses) in &one {
        for (step, loss) in losses {
            let other = three[stage][step];
            let apart = (loss - other).abs();
            assert!(apart <= 1e-4 * loss.abs(), "{stage}, step {step}: {loss} with one worker, {other} with three");
        }
    }
}

#[test]
fn a_teacher_of_another_clip_is_refused_with_both_folders() {
    let plain = recipe();
    let job = Job::new(&plain);
    let (config, folder) = (job.folder().join("teacher"), "models/clip-text-tiny");
    fs::create_dir(&config).unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(folder);
    fs::copy(from.join("tokenizer.json"), config.join("tokenizer.json")).unwrap();
    let text = fs::read_to_string(from.join("config.json")).unwrap();
    fs::write(config.join("config.json"), text.replace("\"projection_dim\": 256", "\"projection_dim\": 128")).unwrap();
    let set = format!("model.teacher.folder={}", config.display());
    let ended = job.llm2clip(&["run", job.recipe().to_str().unwrap(), "--workers", "1", "--set", &set]);
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    for part in
        ["makes vectors of width 128", "vit-tiny of width 256", "`model.teacher.folder` is to hold the text tower"]
    {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
}
