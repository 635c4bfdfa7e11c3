//! Zero-shot classification, and models that are evaluated apart from their training, by the real programs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use safetensors::SafeTensors;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tests::{Job, Recipe, data};

const CLASSES: [&str; 7] = ["red", "orange", "yellow", "green", "blue", "indigo", "violet"];
const IMAGES: u64 = 70;

const RECIPE: &str = r#"name = "model"
seed = 7
output = "OUTPUT"

[data.train]
kind = "webdataset"
shards = "DATA/emoji-wds/train/00000.tar"
rows = { to = 64 }

[data.tree]
kind = "list"
shards = "TREE"
captions = { columns = { ".caption" = 1 } }
benchmark = "imagenet"

[data.tree.classes]
names = ["red", "orange", "yellow", "green", "blue", "indigo", "violet"]
templates = ["one", "simple", "the colour {c}"]

[model.text]
folder = "MODELS/llama-tiny"
init = "random"
max_length = 48

[model.vision]
folder = "MODELS/vit-tiny"
init = "random"

[model.adapter]
blocks = 1

[[stage]]
kind = "embed"
data = ["train", "tree"]

[[stage]]
kind = "clip"
data = "train"
global_batch = 16
steps = 2
optimizer = { learning_rate = 1e-3 }

[[stage]]
kind = "eval"
data = "tree"

[[stage]]
kind = "export"

[faults]
max_failures = 0
"#;

/// A folder tree of images with a caption beside each: the folder is the class.
fn tree(folder: &Path) -> PathBuf {
    let (flat, tree) = (folder.join("flat"), folder.join("tree"));
    fs::create_dir(&flat).unwrap();
    let tar = data("emoji-wds/val/00000.tar");
    assert!(Command::new("tar").arg("-xf").arg(tar).arg("-C").arg(&flat).status().unwrap().success());
    let mut images: Vec<PathBuf> = fs::read_dir(&flat).unwrap().map(|entry| entry.unwrap().path()).collect();
    images.retain(|path| path.extension().is_some_and(|ending| ending == "jpg"));
    images.sort();
    for (number, image) in images.iter().take(IMAGES as usize).enumerate() {
        let class = tree.join(CLASSES[number % CLASSES.len()]);
        fs::create_dir_all(&class).unwrap();
        for file in [image.clone(), image.with_extension("txt")] {
            fs::copy(&file, class.join(file.file_name().unwrap())).unwrap();
        }
    }
    tree
}

fn job(recipe: &str) -> Job {
    let job = Job::new(&Recipe::default());
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/models");
    let text = recipe.replace("OUTPUT", job.output().to_str().unwrap()).replace("MODELS", models.to_str().unwrap());
    let text = text.replace("TREE", tree(job.folder()).to_str().unwrap());
    fs::write(job.recipe(), text.replace("DATA", data("").to_str().unwrap())).unwrap();
    job
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn good(job: &Job, arguments: &[&str]) -> String {
    let output = job.llm2clip(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    said(&output)
}

fn bad(job: &Job, code: i32, arguments: &[&str], parts: &[&str]) {
    let output = job.llm2clip(arguments);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

fn results(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("eval/results.json")).unwrap()).unwrap()
}

/// Top-1 and top-5 of what an evaluation left behind, counted by sorting.
fn counted(folder: &Path, templates: &str) -> [f64; 2] {
    let bytes = fs::read(folder.join("eval/tree.classes.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let rows = |name: &str| -> Vec<Vec<f32>> {
        let tensor = file.tensor(name).unwrap();
        let numbers: Vec<f32> =
            tensor.data().chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
        numbers.chunks_exact(tensor.shape()[1]).map(<[f32]>::to_vec).collect()
    };
    let labels = file.tensor("label").unwrap();
    let labels = labels.data().chunks_exact(8).map(|eight| i64::from_le_bytes(eight.try_into().unwrap()) as usize);
    let (images, classes) = (rows("image"), rows(&format!("class/{templates}")));
    let mut hits = [0, 0];
    for (image, label) in images.iter().zip(labels) {
        let score = |class: &Vec<f32>| -> f64 { class.iter().zip(image).map(|(a, b)| f64::from(a * b)).sum() };
        let scores: Vec<f64> = classes.iter().map(score).collect();
        let place = scores.iter().filter(|other| **other > scores[label]).count();
        hits[0] += usize::from(place < 1);
        hits[1] += usize::from(place < 5);
    }
    hits.map(|hits| hits as f64 / images.len() as f64)
}

/// Whether two evaluations of one model found the same: sums in another order may move an image by one place.
fn same(one: &Value, other: &Value) {
    for (list, keys) in [("zero_shot", ["top_1", "top_5"]), ("retrieval", ["recall_at_1", "recall_at_5"])] {
        let (one, other) = (one[list].as_array().unwrap(), other[list].as_array().unwrap());
        assert_eq!(one.len(), other.len());
        for (one, other) in one.iter().zip(other) {
            for key in keys {
                let apart = (one[key].as_f64().unwrap() - other[key].as_f64().unwrap()).abs();
                assert!(apart <= 1.01 / IMAGES as f64, "{key}: {one} and {other}");
            }
        }
    }
}

#[test]
fn a_model_is_evaluated_from_its_export_and_from_its_job_as_in_its_training() {
    let job = job(RECIPE);
    job.run(2);
    let (output, recipe) = (job.output(), job.recipe().to_str().unwrap().to_owned());
    let trained = results(&output);
    let sets: Vec<&str> =
        trained["zero_shot"].as_array().unwrap().iter().map(|found| found["templates"].as_str().unwrap()).collect();
    assert_eq!(sets, ["one", "simple", "own"]);
    for found in trained["zero_shot"].as_array().unwrap() {
        assert_eq!((found["images"].as_u64(), found["classes"].as_u64()), (Some(IMAGES), Some(7)));
        let top = ["top_1", "top_5"].map(|key| found[key].as_f64().unwrap());
        for (ours, counted) in top.iter().zip(counted(&output, found["templates"].as_str().unwrap())) {
            assert!((ours - counted).abs() <= 1.01 / IMAGES as f64, "{found}: counted {counted}");
        }
    }
    let text = fs::read_to_string(output.join("eval/results.md")).unwrap();
    for part in ["| tree | simple (7) | 7 | 70 | 0 |", "| CLIP L/14-336 + LLM2CLIP | 80 | 75.8 % |", "ProCLIP"] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }

    // From the export, whose LLM the recipe need not name, with another number of workers.
    let export = output.join("export");
    good(&job, &["eval", "--model", export.to_str().unwrap(), &recipe, "--workers", "3"]);
    let apart = output.with_file_name("output-eval");
    let found = results(&apart);
    assert_eq!(found["model"].as_str(), export.to_str());
    assert_eq!(found["checkpoint_step"], trained["checkpoint_step"]);
    same(&found, &trained);

    // Vectors of other words are not taken for these.
    let other = ["eval", "--model", export.to_str().unwrap(), &recipe, "--set", "data.tree.classes.templates=simple"];
    bad(&job, 1, &other, &["00000-prompts.vectors are of other names or templates than `data.tree.classes`"]);

    // From the job's checkpoint, without an LLM: the vectors are there.
    let (set, there) =
        (format!("data.tree.vectors={}", output.join("embed/tree").display()), job.folder().join("there"));
    let to = format!("output={}", there.display());
    good(&job, &["eval", "--model", output.to_str().unwrap(), &recipe, "--set", &set, "--set", &to]);
    same(&results(&there), &trained);

    // Labels and words that do not fit each other, and vectors that are of other words.
    let eval = ["eval", "--model", export.to_str().unwrap(), &recipe, "--set"];
    let with = |set: &str, to: &str| -> Vec<String> {
        let to = format!("output={}", job.folder().join(to).display());
        eval.iter().map(|word| (*word).to_owned()).chain([set.to_owned(), "--set".to_owned(), to]).collect()
    };
    let names = "data.tree.classes.names=[\"red\", \"blue\"]";
    let arguments = with(names, "a");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // Found before anything was computed: nobody tries it again.
    let patient = [&arguments[..], &["--set", "faults.max_failures=5"]].concat();
    bad(&job, 1, &patient, &["data set `tree`", "which none of the 2 names is", "by = \"number\""]);
    let arguments = [&arguments[..], &["--set", &set]].concat();
    bad(&job, 1, &arguments, &["other names or templates than `data.tree.classes`", "`data.tree.vectors`"]);
}

#[test]
fn an_llm_that_reads_otherwise_than_the_model_needs_is_refused() {
    let job = Job::new(&Recipe { steps: 3, clip: "[[stage]]\nkind = \"export\"".to_owned(), ..Recipe::default() });
    job.run(1);
    let (recipe, export) = (job.recipe().to_owned(), job.output().join("export"));
    let text = fs::read_to_string(&recipe).unwrap();
    let (head, _) = text.split_once("[[stage]]").unwrap();
    let (head, _) = head.split_once("[model.vision]").unwrap();
    let with = |name: &str, more: &str| {
        let path = job.folder().join(name);
        let stages = "[[stage]]\nkind = \"embed\"\ndata = \"train\"\n[[stage]]\nkind = \"eval\"\ndata = \"train\"\n";
        let text = head.replace("output\"", &format!("{name}-output\"")) + more;
        fs::write(&path, format!("{text}[model.trained]\nfolder = {export:?}\n{stages}")).unwrap();
        path.to_str().unwrap().to_owned()
    };
    // The recipe's own LLM, with another template.
    let other = with("other.toml", "template = \"a photo of {caption}\"\n");
    let parts =
        ["does not read captions as the model in", "template is `a photo of {caption}`", "Leave `[model.text]` out"];
    bad(&job, 1, &["run", &other], &parts);
    // What the embed stage of another job made, which reads otherwise, too.
    let apart = with("apart.toml", "pooling = \"mean-caption\"\n");
    let text = fs::read_to_string(&apart).unwrap();
    let (start, _) = text.split_once("[model.trained]").unwrap();
    fs::write(&apart, format!("{start}[[stage]]\nkind = \"embed\"\ndata = \"train\"\n")).unwrap();
    good(&job, &["run", &apart]);
    let vectors = job.folder().join("apart.toml-output/embed/train");
    let set = format!("data.train.vectors={}", vectors.display());
    let given = with("given.toml", "");
    let parts = ["the text vectors of data set `train` are not such as the adapter", "their pooling is `mean-caption`"];
    bad(&job, 1, &["run", &given, "--set", &set], &parts);
    // A recipe that trains does not take a trained model, and says which verb does.
    let set = format!("model.trained.folder={}", export.display());
    bad(
        &job,
        2,
        &["run", recipe.to_str().unwrap(), "--set", &set],
        &["`[model.trained]`", "leave `[model.vision]` out"],
    );
    bad(&job, 2, &["eval", "--model", "/nowhere", recipe.to_str().unwrap()], &["--model /nowhere"]);
    let folder = job.folder().to_str().unwrap();
    bad(&job, 1, &["eval", "--model", folder, &given], &["neither a folder that `llm2clip export` wrote"]);
}
