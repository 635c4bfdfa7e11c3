//! What the `clip` stage may minimise, train and keep, through the programs: a resume changes no bit of it, an export is what was
//! evaluated, and a step that is not finite ends the job or does not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    process::{Command, Output},
};
use tests::{Job, Recipe, data, tensors};

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

/// The sigmoid loss, low-rank updates with dropout, an average, which is the tower's teacher, too, and a locked adapter.
fn everything() -> Recipe {
    let clip = "loss = \"sigmoid\"\nlora = { rank = 4 }\nema = { decay = 0.5 }\n\
                self_distillation = { weight = 0.01 }\nlock = { adapter = true }\n\
                [[stage]]\nkind = \"eval\"\ndata = \"train\"\n\n[[stage]]\nkind = \"export\"\n";
    Recipe { steps: 12, clip: clip.to_owned(), data: "rows = { to = 96 }".to_owned(), ..Recipe::default() }
}

#[test]
fn a_resumed_training_leaves_the_same_average_and_its_export_is_what_was_evaluated() {
    let (job, disturbed) = (Job::new(&everything()), Job::new(&everything()));
    job.run(2);
    let run = disturbed.start(2);
    disturbed.wait_for_checkpoint(4);
    for pid in disturbed.trainers() {
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }
    let ended = run.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", text(&ended));
    let (code, said) = disturbed.say(&["resume"]);
    assert_eq!(code, Some(0), "{said}");

    let last = |job: &Job| tensors(&job.output().join("clip/step-000000012"));
    let (kept, resumed) = (last(&job), last(&disturbed));
    assert!(kept == resumed, "a resumed training differs");
    let updated = "vision_model.encoder.layers.0.self_attn.q_proj";
    for name in ["param.X.lora_B.weight", "ema.X.lora_B.weight", "exp_avg.X.lora_B.weight", "param.X.weight"] {
        assert!(kept.contains_key(&name.replace('X', updated)), "{name}");
    }
    assert!(!kept.contains_key(&format!("ema.{updated}.weight")) && !kept.contains_key("exp_avg.adapter.1.weight"));

    // The average, with the updates merged.
    let export = job.output().join("export");
    let exported = tensors(&export);
    assert!(exported["logit_bias"] == kept["ema.logit_bias"] && exported["logit_bias"] != kept["param.logit_bias"]);
    assert!(exported.keys().all(|name| !name.contains("lora_")));
    let merged = numbers(&exported[&format!("{updated}.weight")]);
    let base = numbers(&kept[&format!("param.{updated}.weight")]);
    assert!(merged.iter().zip(&base).any(|(a, b)| (a - b).abs() > 1e-6), "no update was merged");
    let description = fs::read_to_string(export.join("llm2clip.json")).unwrap();
    assert!(description.contains("\"logit_bias\": -"), "{description}");

    let images = job.folder().join("images");
    fs::create_dir(&images).unwrap();
    let tar = data("emoji-wds/train/00000.tar");
    assert!(Command::new("tar").arg("-xf").arg(tar).arg("-C").arg(&images).status().unwrap().success());
    let keys = fs::read_to_string(job.output().join("eval/train.keys.txt")).unwrap();
    let files: Vec<String> = keys.lines().map(|key| images.join(format!("{key}.jpg")).display().to_string()).collect();
    let out = job.folder().join("out/features.safetensors");
    fs::create_dir(out.parent().unwrap()).unwrap();
    let mut arguments = vec!["encode", "--model", export.to_str().unwrap(), "--out", out.to_str().unwrap(), "--images"];
    arguments.extend(files.iter().map(String::as_str));
    let output = job.llm2clip(&arguments);
    assert!(output.status.success(), "{}", text(&output));
    let (found, evaluated) = (tensors(out.parent().unwrap()), tensors(&job.output().join("eval")));
    let (found, evaluated) = (numbers(&found["image"]), numbers(&evaluated["image"]));
    assert_eq!(found.len(), evaluated.len());
    let apart = found.iter().zip(&evaluated).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart < 1e-5, "images differ by {apart}");
}

#[test]
fn a_poisoned_batch_is_left_out_as_often_in_a_row_as_the_recipe_says() {
    let run = |limit: &str, steps: &[u64]| {
        let job = Job::new(&Recipe { steps: 8, clip: limit.to_owned(), ..Recipe::default() });
        let faults: Vec<String> = steps.iter().map(|step| format!("clip.step=poison@{step}")).collect();
        let mut command = job.command(&["run", job.recipe().to_str().unwrap(), "--workers", "2"]);
        let ended = command.env("LLM2CLIP_FAILPOINTS", faults.join(",")).output().unwrap();
        (job, ended)
    };
    let (job, ended) = run("skip_nonfinite = 2", &[3, 4, 6]);
    assert!(ended.status.success(), "{}", text(&ended));
    let lines = fs::read_to_string(job.output().join("clip/metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 8);
    for line in &lines {
        let skipped = [3, 4, 6].contains(&line["step"].as_u64().unwrap());
        assert_eq!(line["loss"].is_null(), skipped, "{line}");
        assert_eq!(line.get("skipped_nonfinite").is_some(), skipped, "{line}");
    }
    let (first, after) = (lines[1]["loss"].as_f64().unwrap(), lines[7]["loss"].as_f64().unwrap());
    assert!(after < first, "it went on learning: {first}, then {after}");

    let (job, ended) = run("skip_nonfinite = 2", &[3, 4, 5]);
    assert_eq!(ended.status.code(), Some(1), "{}", text(&ended));
    let (_, why) = job.say(&["why"]);
    for part in ["step 5 is not finite", "as in 2 steps before it", "`skip_nonfinite` lets no more pass"] {
        assert!(why.contains(part), "{part} is not in: {why}");
    }
    let (job, ended) = run("", &[3]);
    assert_eq!(ended.status.code(), Some(1), "{}", text(&ended));
    let (_, why) = job.say(&["why"]);
    for part in ["step 3 is not finite", "`skip_nonfinite` lets none pass", "lower `learning_rate`"] {
        assert!(why.contains(part), "{part} is not in: {why}");
    }
}
