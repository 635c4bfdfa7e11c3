//! A trained model leaves the house: exported, read back, encoded with, and loaded by other libraries.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use safetensors::SafeTensors;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tests::{Job, Recipe, data, model};

/// A job with an evaluation and an export behind the training.
fn recipe() -> Recipe {
    let stages = "\n[[stage]]\nkind = \"eval\"\ndata = \"train\"\n\n[[stage]]\nkind = \"export\"\n";
    let (vision, clip, data) = (model("vit-tiny"), stages.to_owned(), "rows = { to = 96 }".to_owned());
    Recipe { steps: 4, vision, clip, data, ..Recipe::default() }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a verb that must end well.
fn good(job: &Job, arguments: &[&str]) -> String {
    let output = job.llm2clip(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    said(&output)
}

/// Runs a verb that must fail with one message, which holds all of `parts`.
fn bad(job: &Job, arguments: &[&str], parts: &[&str]) {
    let output = job.llm2clip(arguments);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

/// The numbers of a tensor of a file.
fn numbers(path: &Path, name: &str) -> Vec<f32> {
    let bytes = fs::read(path).unwrap();
    let tensor = SafeTensors::deserialize(&bytes).unwrap().tensor(name).unwrap().data().to_vec();
    tensor.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Unpacks the training set; returns its images and the file of their captions, in the order of `eval`'s rows.
fn unpacked(job: &Job) -> (Vec<String>, PathBuf) {
    let folder = job.folder().join("images");
    fs::create_dir(&folder).unwrap();
    let tar = data("emoji-wds/train/00000.tar");
    assert!(Command::new("tar").arg("-xf").arg(tar).arg("-C").arg(&folder).status().unwrap().success());
    let keys = fs::read_to_string(job.output().join("eval/train.keys.txt")).unwrap();
    let file = |key: &str, ending: &str| folder.join(format!("{key}.{ending}"));
    let captions = keys.lines().map(|key| fs::read_to_string(file(key, "txt")).unwrap().trim().to_owned() + "\n");
    let texts = job.folder().join("texts.txt");
    fs::write(&texts, captions.collect::<String>()).unwrap();
    (keys.lines().map(|key| file(key, "jpg").display().to_string()).collect(), texts)
}

#[test]
fn features_of_an_export_are_those_that_were_evaluated() {
    let job = Job::new(&recipe());
    job.run(2);
    let (images, texts) = unpacked(&job);
    let (export, out) = (job.output().join("export"), job.folder().join("features.safetensors"));
    let mut arguments = vec!["encode", "--model", export.to_str().unwrap(), "--batch", "50", "--images"];
    arguments.extend(images.iter().map(String::as_str));
    arguments.extend(["--texts", texts.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    good(&job, &arguments);
    let evaluated = job.output().join("eval/train.safetensors");
    let image = apart(&numbers(&out, "image"), &numbers(&evaluated, "image"));
    let text = apart(&numbers(&out, "text"), &numbers(&evaluated, "text/.txt"));
    assert!(image < 1e-5, "images differ by {image}");
    // Vectors are kept in bf16: another order of sums may round one to its neighbour.
    assert!(text < 2e-3, "texts differ by {text}");
    let beside = fs::read_to_string(out.with_extension("images.txt")).unwrap();
    assert!(beside.lines().eq(images.iter()), "each row is named");

    let golden = job.folder().join("golden.safetensors");
    let golden = golden.to_str().unwrap();
    good(&job, &["encode", "--model", export.to_str().unwrap(), "--golden", "write", golden]);
    let text = good(&job, &["encode", "--model", export.to_str().unwrap(), "--golden", "check", golden]);
    assert!(text.contains("the same") && !text.contains("NOT"), "{text}");
    peers(&export, golden, "transformers and open_clip");

    // Another checkpoint is another model, and the reference vectors are not of it.
    let (first, other) = (job.output().join("clip/step-000000004"), job.folder().join("other"));
    let (first, other) = (first.to_str().unwrap(), other.to_str().unwrap());
    let text = good(&job, &["export", first, "--to", other, "-o", "json"]);
    assert!(text.contains("\"unchanged\": false"), "{text}");
    assert_eq!(numbers(&export.join("model.safetensors"), "logit_scale").len(), 1);
    let weights = |folder: &str| fs::read(Path::new(folder).join("model.safetensors")).unwrap();
    assert!(weights(other) == weights(export.to_str().unwrap()), "the stage and the verb write the same");
    let text = good(&job, &["export", job.output().to_str().unwrap(), "--to", other]);
    assert!(text.contains("was there already"), "{text}");
    bad(
        &job,
        &["export", first, "--to", job.folder().to_str().unwrap()],
        &["llm2clip.json", "nothing is written over it"],
    );

    let llm = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/models/llama-tiny");
    let texts = texts.to_str().unwrap();
    let encode = ["encode", "--model", other, "--texts", texts, "--out", golden];
    bad(&job, &[&encode[..], &["--llm", llm.to_str().unwrap()]].concat(), &["vectors of", "--llm"]);
    bad(&job, &[&encode[..], &["--llm", "/nowhere"]].concat(), &["the LLM /nowhere,", "--llm"]);
    bad(&job, &[&encode[..], &["--images", "/nowhere/*.jpg"]].concat(), &["/nowhere/*.jpg"]);
    let description = Path::new(other).join("llm2clip.json");
    let text = fs::read_to_string(&description).unwrap();
    fs::write(&description, text.replace("\"{caption}\"", "\"a photo of {caption}\"")).unwrap();
    bad(&job, &encode, &["llm2clip.json", "it was changed since it was written"]);
    fs::write(&description, text).unwrap();
    let weights = Path::new(other).join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    bad(&job, &encode, &["model.safetensors", "BLAKE3"]);

    // The tower goes on being trained from the export: by low-rank updates, which leave the house by themselves as well.
    let clip = format!("lora = {{ rank = 4, dropout = 0.1 }}\n{}", recipe().clip);
    let on = Recipe { vision: export, init: "pretrained", steps: 6, every_steps: 6, clip, ..recipe() };
    let on = Job::new(&on);
    on.run(1);
    let (export, golden) = (on.output().join("export"), on.folder().join("golden.safetensors"));
    let golden = golden.to_str().unwrap();
    good(&on, &["encode", "--model", export.to_str().unwrap(), "--golden", "write", golden]);
    let config = fs::read_to_string(export.join("vision_lora/adapter_config.json")).unwrap();
    assert!(config.contains("\"vision_model.encoder.layers.3.mlp.fc2\"") && config.contains("\"r\": 4"), "{config}");
    peers(&export, golden, "transformers and open_clip and peft beside the vision tower");
}

#[test]
fn an_llm_that_was_tuned_goes_with_the_export_and_reads_texts_as_it_did() {
    let contrast = r#"[[stage]]
kind = "contrast"
data = "train"
global_batch = 16
steps = 2
pairs = { train = { rule = "short-long", short = ".txt", long = "long_caption" } }
lora = { rank = 4 }
optimizer = { learning_rate = 1e-2 }
schedule = { warmup_steps = 0 }
"#;
    let job = Job::new(&Recipe { tuning: contrast.to_owned(), ..recipe() });
    job.run(1);
    let (_, texts) = unpacked(&job);
    let (export, out) = (job.output().join("export"), job.folder().join("features.safetensors"));
    let lora = |folder: &Path| fs::read(folder.join("adapter_model.safetensors")).unwrap();
    assert!(lora(&export.join("llm/adapter-1")) == lora(&job.output().join("contrast/adapter")));
    let (model, texts) = (export.to_str().unwrap(), texts.to_str().unwrap());
    let encode = ["encode", "--model", model, "--texts", texts, "--out", out.to_str().unwrap()];
    good(&job, &encode);
    let text = apart(&numbers(&out, "text"), &numbers(&job.output().join("eval/train.safetensors"), "text/.txt"));
    assert!(text < 2e-3, "texts differ by {text}");
    let golden = job.folder().join("golden.safetensors");
    good(&job, &["encode", "--model", model, "--golden", "write", golden.to_str().unwrap()]);
    peers(&export, golden.to_str().unwrap(), "transformers and open_clip and peft");

    let config = export.join("llm/adapter-1/adapter_config.json");
    fs::write(&config, fs::read_to_string(&config).unwrap().replace("\"lora_alpha\": 8.0", "\"lora_alpha\": 9.0"))
        .unwrap();
    bad(&job, &encode, &["is not the one", "adapters is"]);
}

/// Other libraries make the same features of the export, where they are installed.
fn peers(export: &Path, golden: &str, libraries: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let installed = root.join(".deps/peers-1/bin/python");
    let python = std::env::var_os("LLM2CLIP_PYTHON").map(PathBuf::from);
    let Some(python) = python.or_else(|| installed.exists().then_some(installed)) else {
        println!("skipped: {libraries} are not installed (`make peers`), so the export was not loaded by them");
        return;
    };
    let mut command = Command::new(python);
    command.env("HF_HUB_OFFLINE", "1").env("HF_MODULES_CACHE", export.with_file_name("hf-modules"));
    let output = command.arg(root.join("tests/python/round_trip.py")).arg(export).arg(golden).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains(&format!("the same in {libraries}\n")), "{}", said(&output));
    println!("{}", String::from_utf8_lossy(&output.stdout));
}
